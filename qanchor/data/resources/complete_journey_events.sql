with numbers as (
    select household, basket, text, min(time) as time, count(*) as n, round(sum(amount), 2) as amount, sum(items) as items,
           round(sum(discount), 2) as discount, sum(case when private then amount else 0 end) as own
    from lines group by grouping sets ((household, basket, text), (household, basket))),
shown as (  -- what was promoted, in the store and week in which it was bought
    select l.household, l.basket, l.text, min(l.time) as time, max(m.display_location <> '0') as display,
           max(m.mailer_location <> '0') as mailer
    from lines l join '{data}/promotions.parquet' m using (product_id, store_id, week) group by 1, 2, 3),
coupons as (  -- the category that most of a coupon's products belong to
    select coupon_upc, campaign_id, arg_max(text, (products, text)) as text
    from (select coupon_upc, campaign_id, n.text, count(*) as products
          from '{data}/coupons.parquet' join '{data}/products.parquet' p using (product_id) join names n
          on n.department is not distinct from p.department and n.category is not distinct from p.product_category
          group by 1, 2, 3) group by 1, 2)
select household, time, case when text is null then 'basket' else 'product' end as modality,
       coalesce(text, concat(
           case when n <= 3 then 'small' when n <= 12 then 'medium' when n <= 30 then 'large' else 'very large' end,
           case when isodow(time) >= 6 then ' weekend' else ' weekday' end,
           case when hour(time) between 5 and 11 then ' morning' when hour(time) between 12 and 16 then ' afternoon'
                when hour(time) between 17 and 20 then ' evening' else ' night' end, ' shop')) as text,
       amount, items, discount, round(own / nullif(amount, 0), 3) as private from numbers
union all
select household_id, start_date, 'campaign', 'campaign ' || lower(campaign_type[:4]) || campaign_type[5:] || ' received',
       null, null, null, null
from '{data}/campaigns.parquet' join '{data}/campaign_descriptions.parquet' using (campaign_id)
where household_id in (select household from lines)
union all
select household_id, redemption_date, 'coupon', 'coupon redeemed: ' || text, null, null, null, null
from '{data}/coupon_redemptions.parquet' join coupons using (coupon_upc, campaign_id)
where household_id in (select household from lines)
union all
select household, time, 'promotion', case when display and mailer then 'on display and in mailer: '
       when display then 'on display: ' else 'in mailer: ' end || text, null, null, null, null
from shown where display or mailer
