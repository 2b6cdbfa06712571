with future as (select * from lines where time >= timestamp '{cutoff}' and time < timestamp '{cutoff}' + interval {days} day),
past as (select household, sum(amount) / {thirds} as spend, count(distinct basket) / {thirds} as baskets
         from lines where time < timestamp '{cutoff}' group by 1),
next as (
    select household, max(time) as last, sum(amount) as spend, count(distinct basket) as baskets,
           avg((discount > 0)::int) as discount,
           sum(case when private then amount else 0 end) / nullif(sum(amount), 0) as private,
           bool_or(regexp_matches(category, 'BABY|INFANT|DIAPERS')) as baby,
           bool_or(regexp_matches(category, 'CAT FOOD|DOG FOODS|CAT LITTER|PET CARE')) as pet from future group by 1)
select past.household as user, coalesce(last < timestamp '{cutoff}' + interval {days} day - interval 31 day, true) as lapse,
       coalesce(next.spend, 0) < .5 * past.spend as spend_drop, coalesce(next.baskets, 0) > 1.25 * past.baskets as visits_up,
       exists (from '{data}/coupon_redemptions.parquet' r where r.household_id = past.household and r.redemption_date
               >= timestamp '{cutoff}' and r.redemption_date < timestamp '{cutoff}' + interval {days} day) as redeem,
       coalesce(discount > (select quantile_cont(discount, .75) from next), false) as discount,
       coalesce(private > (select quantile_cont(private, .75) from next), false) as private_label,
       coalesce(baby, false) as baby, coalesce(pet, false) as pet,
       not regexp_matches(income, '^(Under 15K|15-24K|25-34K|35-49K|50-74K)$') as high_income, age in ('55-64', '65+') as age55
from past left join next using (household) left join '{data}/demographics.parquet' d on d.household_id = past.household
order by 1
