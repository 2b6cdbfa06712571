create temp table lines as
with t as (select *, transaction_timestamp
                   - case when transaction_timestamp between timestamp '2017-03-12 07:00:00'
                                                         and timestamp '2017-11-05 05:59:59'
                          then interval 4 hour else interval 5 hour end as time from '{data}/transactions.parquet')
select t.household_id as household, t.basket_id as basket, t.product_id, t.store_id, t.week, n.text, t.time,
       t.sales_value as amount, p.product_category as category, t.retail_disc + t.coupon_disc + t.coupon_match_disc as discount,
       case when t.quantity > {weighed} then 1 else t.quantity end as items, p.brand = 'Private' as private
from t join '{data}/products.parquet' p using (product_id)
join names n on n.department is not distinct from p.department and n.category is not distinct from p.product_category
where t.household_id in (select household_id from t where time < timestamp '{cutoff}'
                         group by household_id having count(distinct basket_id) >= {baskets})
