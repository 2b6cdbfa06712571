"""The 72 topics of life: what can be asked of a user, in which words, and which events speak of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

HELD_OUT = 1  # the last `HELD_OUT` profile and future wordings of each topic are for tests: no training pair may use them
# left out of `TAUGHT`: pretrain on pairs of `TAUGHT` alone, and these show what a model makes of a question nobody taught it
HELD_OUT_TOPICS = ("insurance", "cinema", "bulk", "luxury", "vitamins", "commute", "pets", "coffee", "electronics")
# Frames are turned by the topic's place in the table, so no frame always stands last or always means one topic.
PROFILE_FRAMES = (
    "Is this {user} {state}?",
    "What do the records of this {user} say about {thing}?",
    "Would you say that this {user} is {state}?",
    "Is there any sign of {thing} in the history of this {user}?",
    "Does this {user} seem to be {state}?",
    "Do the records suggest that this {user} is {state}?",
)
WORD_FRAMES = (
    "Does this {user} {does}?",
    "How often does this {user} {does}?",
    "How much is there about {thing} in the records of this {user}?",
    "How much of what this {user} does is about {thing}?",
)
FUTURE_FRAMES = (
    "Will this {user} {does} in the next month?",
    "How likely is this {user} to {does} in the next 30 days?",
    "Do you expect this {user} to {does} next month?",
    "Is this {user} about to {does}?",
    "Over the coming month, will this {user} {does}?",
    "What are the chances that this {user} will {does} within 30 days?",
    "Looking 30 days ahead, will this {user} {does}?",
    "Should we expect this {user} to {does} soon?",
)
# name | domain | measure | word stems | does | thing | is ... | two profile wordings | two future wordings (@ = this {user})
TABLE = """
credit | finance | words | credit card, credit limit, instal, loan repay, mortgage | buy on credit | credit and instalments |
  living on credit | Does @ owe money? | How deep in debt is @? | Will @ borrow soon? | Will @ pay by instalments next month?
cash_advance | finance | words | cash advance, cash loan, payday, quick cash, pawn, cash reserve | take a cash advance
  | cash loans | short of cash | Is money tight for @? | Does @ need cash before payday?
  | Will @ draw on a cash reserve? | Will @ need quick money this coming month?
late_fees | finance | words | overdraft, overdue, late fee, past due, unpaid, reminder notice | pay a late fee
  | overdrafts and late fees | behind with payments | Does @ miss due dates? | Are the bills of @ paid late?
  | Will @ fall behind with a payment? | Will the account of @ be overdrawn next month?
saving | finance | words | saving, term deposit, piggy, rainy day | put money aside | savings | saving money
  | Is @ a saver? | Does @ keep a reserve for hard times? | Will @ add to the savings soon? | Will @ save anything next month?
investing | finance | words | stocks, stock market, index fund, invest, broker, gold price, bonds, crypto, wealth | invest money
  | funds and shares | active as an investor | Does @ follow the stock market? | Does @ put money into shares or funds?
  | Will @ buy a fund or a share soon? | Will @ move money into investments next month?
insurance | finance | words | insur, policy renew, premium due, claim form | buy insurance | insurance | well insured
  | Does @ cover risks with insurance? | Does @ hold any policy? | Will @ renew a policy soon? | Will @ take out insurance?
household_bills | finance | words | electric bill, water bill, gas bill, rent., broadband, phone bill | pay household bills
  | rent and utilities | paying for a home | Does @ run up power and phone bills? | Does @ pay for a flat or house?
  | Will @ pay rent or utilities soon? | Will @ settle a phone or power bill next month?
transfers | finance | words | transfer, send money, red packet, split the bill | send money to others | transfers to people
  | sending money to friends or family | Does @ share costs with friends? | Does money flow from @ to other people?
  | Will @ send somebody money soon? | Will @ make a transfer to a friend next month?
salary | finance | words | salary, payroll, wage, payslip, income tax | receive a salary | wages | in regular work
  | Does @ have a steady income? | Is @ employed? | Will @ be paid a wage next month? | Will pay arrive for @ as usual?
fraud | risk | words | unknown payee, gift card code, new device, vpn, chargeback, blocked, verif, resell, bulk sms
  | make suspicious payments | suspicious payments | behaving like a fraudster | Can @ be trusted with a payment?
  | Does anything about @ look like fraud? | Will @ be caught in a fraud? | Will payments of @ have to be blocked?
gambling | risk | words | lotter, bet., bets., betting, casino, scratch, poker | gamble | gambling | drawn to games of chance
  | Does @ play the lottery? | Is @ a gambler? | Will @ place a bet soon? | Will @ buy lottery tickets next month?
active | engagement | events | - | be very active | high activity | very active | Is @ here a lot?
  | How busy is @? | Will @ be seen often next month? | Will @ keep up this level of activity?
login | engagement | words | log in, login, sign in, check in, check-in, streak | complete the daily check-in | daily check-ins
  | logging in day after day | Does @ sign in every day? | Is checking in a habit of @?
  | Will @ sign in on most days? | Will @ keep the check-in streak alive?
variety | engagement | variety | - | try many different things | variety | open to new things
  | Are the habits of @ broad or narrow? | Does @ go for variety? | Will @ try something new? | Will @ stick to the same things?
lapse | engagement | stop | - | stop shopping here | recent silence | drifting away | Is @ at risk of leaving?
  | Have we seen the last of @? | Will @ be gone next month? | Are we losing @?
visits_up | engagement | trend | - | come more often | rising activity | coming more and more often
  | Have the visits of @ become more frequent? | Is @ here more than before? | Will visits by @ increase?
  | Will we see more of @ next month than before?
mini_programs | engagement | modality:mini | mini program | use mini programs | mini programs | at home in mini programs
  | Does @ use mini programs a lot? | Are mini programs part of the day of @? | Will @ open mini programs next month?
  | Will @ go on using mini programs?
searching | engagement | modality:search | - | search for things | searches | curious and searching a lot
  | Does @ look things up often? | Is @ a heavy searcher? | Will @ search a lot next month? | Will @ type many searches soon?
games | leisure | words | games, gaming, mobile game, puzzle, console, esport, video game | play games | games | a keen player
  | Is @ a gamer? | Does playing take up the time of @? | Will @ spend time on games soon? | Will @ play next month?
forest | green | words | tree, forest, green energy, carbon., recycl, plant a, eco bag | plant a tree | planting trees
  | keen on planting trees and green living | Does @ care about nature? | Is @ green at heart?
  | Will @ collect green energy next month? | Will a tree be planted by @?
coupons | thrift | modality:coupon | coupon, voucher | redeem a coupon | coupons | a coupon user | Does @ clip coupons?
  | Do coupons work on @? | Will @ use a coupon? | Will a coupon be redeemed by @ next month?
discount | thrift | discount | - | buy things on discount | discounts | mostly buying on discount
  | Is @ price-conscious? | Does @ wait for lower prices? | Will @ wait for sales? | Will @ buy mostly at a reduced price?
store_brand | thrift | private | - | buy store brands | store brands | loyal to store brands
  | Does @ choose the store's own label? | Are cheaper own-label goods the choice of @?
  | Will @ go for own-label goods? | Will @ pick the store's label over the big names?
bargains | thrift | words | clearance, outlet, flash sale, bargain, dollar, second hand, group buy | hunt for bargains
  | bargains | always after a bargain | Is @ a bargain hunter? | Does @ live thriftily?
  | Will @ snap up a bargain? | Will @ buy something at a clearance next month?
spend | thrift | spend | - | spend a lot of money | high spending | a big spender | How much does @ spend?
  | Is @ on a tight budget? | Will @ spend heavily next month? | Is a costly month ahead for @?
basket | thrift | basket | - | make large purchases | large baskets | buying a lot at once | How big is a typical basket of @?
  | Does @ stock up in large trips? | Will @ fill a large basket? | Will the next purchases of @ be large ones?
spend_down | thrift | spend_trend | - | cut back on spending | falling spending | spending less than before
  | Has the spending of @ fallen? | Is @ tightening the belt? | Will @ spend less? | Will the spending of @ drop by half?
spend_up | thrift | spend_trend | - | spend more than before | rising spending | spending more and more
  | Has the spending of @ grown? | Is @ worth more than before? | Will @ raise spending? | Will spending by @ go up next month?
price_compare | thrift | words | compare, cheapest, price alert, price drop, lowest, review | compare prices | comparing prices
  | careful to compare before buying | Does @ shop around? | Does @ look at every price twice?
  | Will @ check prices before buying? | Will @ shop around next month?
bulk | thrift | words | bulk food, family pack, value pack, warehouse, multipack, stock up | buy family packs | buying in bulk
  | a bulk buyer | Does @ buy the large sizes? | Does @ fill the pantry with big packs?
  | Will @ stock up on large packs? | Will @ buy in bulk next month?
brand | loyalty | words | flagship, official store, brand., new collection, limited edition | buy from a favourite brand
  | favourite brands | loyal to brands | Do brands matter to @? | Does @ stay true to one label?
  | Will @ return to a favourite label? | Will @ order at an official store next month?
promo | loyalty | words | promo, campaign, sale event, special offer, cashback, mailer, on display | take up a promotion
  | promotions | drawn in by promotions | Do campaigns reach @? | Does @ react to offers?
  | Will @ answer to a campaign? | Will a special offer bring @ back?
membership | loyalty | words | member, loyalty, points, reward, tier upgrade, continuities | use a membership
  | memberships and points | a loyal member | Does @ collect points? | Is @ in a rewards programme?
  | Will @ use reward points soon? | Will @ renew a membership?
luxury | loyalty | words | luxur, designer, watch, jewel, fine dining, first class, imported wine, boutique, fragrance
  | buy something luxurious | luxury | used to the finer things | Is @ well off? | Does @ have a high income?
  | Will @ buy something expensive? | Will @ pay for quality next month?
weekend | timing | weekend | - | be active at the weekend | weekend activity | mostly active at weekends
  | Does @ come on Saturdays and Sundays? | Are weekends the time of @? | Will @ be a weekend visitor? | Will @ come on Sunday?
evening | timing | evening | - | be active in the evening | evening activity | an evening type | Does @ come after work?
  | Are evenings the time of @? | Will @ be around in the evenings? | Will @ come after six?
night | timing | night | - | be active late at night | late nights | awake late at night | Is @ a night owl?
  | Does @ do things after midnight? | Will @ be up late next month? | Will @ be seen in the small hours?
concerts | leisure | words | concert, gig., gigs., music festival, festival pass, live music, livehouse, vinyl, musical, band.,
  bands., orchestra | spend time on concerts and music | concerts and music | fond of music | Does @ go to gigs? | Is @ a music
  lover? | Will @ look for music? | Will @ go to a show or buy music next month?
cinema | leisure | words | cinema, movie, film, box office, drama, romance, theatre | watch a film | films and drama
  | a lover of films | Does @ go to the pictures? | Is film a hobby of @? | Will @ watch a drama? | Will @ go to see a film?
action | leisure | words | action, thriller, adventure, war., western, crime, superhero | choose an action film
  | action and thrillers | into action stories | Does @ like fast and loud films? | Does @ look for suspense?
  | Will @ watch a thriller next? | Will @ pick something full of action?
comedy | leisure | words | comedy, stand-up, sitcom, funny, children's, animation, cartoon | watch a comedy
  | comedy and cartoons | in the mood for comedy | Does @ like to laugh? | Does light entertainment suit @?
  | Will @ choose something funny? | Will @ watch a cartoon or comedy next month?
scifi | leisure | words | sci-fi, science fiction, fantasy, horror, mystery, film-noir, space, anime | watch science fiction
  | science fiction and fantasy | into science fiction | Does @ like strange worlds? | Does @ love horror or fantasy?
  | Will @ pick a fantasy next? | Will @ watch something from another world?
learning | leisure | words | course, study, exam., book., books, bookst, novel., magazine, newspaper, language, documentary
  | read or study | reading and learning | eager to learn | Does @ read a lot? | Is @ studying something?
  | Will @ buy a book soon? | Will @ take up a course next month?
fitness | health | words | gym, yoga, running, workout, marathon, isotonic, fitness, protein, step count, sports
  | exercise | sport and fitness | sporty | Does @ work out? | Does @ keep fit?
  | Will @ do sport regularly? | Will @ go to the gym next month?
parties | leisure | words | party, gift, greeting card, bouquet, floral, roses, christmas, halloween, easter, valentine
  | buy gifts or party goods | gifts and celebrations | fond of celebrations | Does @ give presents? | Does @ host parties?
  | Is a celebration coming up for @? | Will @ buy flowers or a present?
travel | travel | words | flight, hotel, airport, luggage, visa appl, train ticket, resort, passport, itinerary | travel |
  travel | often on the road | Does @ fly or stay in hotels? | Is @ a traveller? | Will @ take a trip soon? | Will @ book a
  journey next month?
commute | travel | words | metro, bus ride, bus pass, ride hail, taxi, commut, bike share, shared bike | commute to work
  | commuting | on the move across town every day | How does @ get around? | Does @ ride the metro or the bus?
  | Will @ ride to work as usual? | Will @ take public transport next month?
cars | travel | words | fuel, petrol, parking, car wash, automotive, toll., tyre, motor | pay for a car
  | car costs | a driver | Does @ drive? | Has @ got a car? | Will @ fill up the tank? | Will @ spend on a car next month?
baby | family | words | baby, diaper, infant, nappy, stroller, toddler, maternity, newborn | buy baby products
  | baby care | caring for a baby | Is there a baby at home with @? | Has @ got a newborn to feed?
  | Will @ need diapers next month? | Will @ shop for an infant?
children | family | words | toys, toy., school, kids, stationery, tutor, playground, homework, lunch box | buy things for school
  or play | school and toys | spending on school and toys | Are there children around @? | Does @ buy for school-age kids? |
  Will @ buy toys soon? | Will @ pay for something at school?
pets | family | words | dog food, dog walk, dog groom, cat food, cat litter, pet food, pet care, kitten, puppy, vet., bird seed
  | buy pet supplies | pets | a pet owner | Does @ have a dog or a cat? | Does an animal live with @?
  | Will @ buy food for a pet? | Will @ care for an animal next month?
elder_care | family | words | incontinence, blood pressure, hearing aid, glasses, walking stick, pension, home health
  | buy things for older people | care in old age | older or caring for somebody old | Is @ of advanced age?
  | Does @ look after ageing parents? | Will @ buy health aids? | Will @ need things for old age next month?
medicine | health | words | pharmac, clinic, cold and flu, analgesic, antacid, laxative, first aid, sinus, doctor, medicine
  | buy medicine | medicine and doctors | often unwell | Does @ have health troubles? | Does @ visit doctors?
  | Will @ see a doctor soon? | Will @ need the pharmacy next month?
vitamins | health | words | vitamin, diet, supplement, low fat, calorie, weight, rice cake, sugar free, nutrition
  | buy vitamins or diet food | diet and vitamins | on a diet | Does @ watch the weight? | Does @ take supplements?
  | Will @ start a diet soon? | Will @ buy supplements next month?
beauty | health | words | cosmetic, makeup, skin, hair care, salon, nail, face mask, lipstick, shaving, hand/body, deodorant
  | buy beauty products | beauty and skin care | careful about looks | Does @ use make-up? | Does @ spend on personal care?
  | Will @ buy cosmetics soon? | Will @ visit a salon or beauty shop next month?
takeout | diet | words | takeout, take-out, food delivery, fried chicken, burger, pizza deliver, milk tea, quick service,
  prepared food, sushi, party tray, noodle bowl, bento | order takeout | takeout meals | fond of takeout
  | Does @ have meals delivered? | Does @ avoid the stove? | Will dinner be delivered to @ soon? | Will @ order in a lot?
convenience | diet | words | frozen, frzn, heat/serve, convenient, ready meal, instant, dinner mxs, microwave, lunchmeat
  | buy ready meals | frozen and ready food | happy with quick meals | Does @ avoid cooking? | Does @ fill the freezer?
  | Will @ buy frozen food soon? | Will @ live on quick meals next month?
produce | diet | words | vegetable, fruit, salads, salad mix, salad bar, salad leaves, apples, berries, carrots, tomato,
  potatoes, onions, citrus, grapes, broccoli, peppers, mushroom, melon | buy fruit and vegetables | fruit and vegetables |
  eating plenty of greens | Does @ eat healthily? | Does @ like salads and fruit? | Will @ buy fruit soon? | Will @ buy
  vegetables next month?
meat | diet | words | beef, pork, chicken, turkey, seafood, bacon, sausage, hot dogs, smoked meat, deli meat, meat, steak, lamb
  | buy meat or fish | meat and fish | fond of meat | Does @ eat meat often? | Is there meat on the table of @?
  | Will @ buy beef or chicken soon? | Will @ have a barbecue next month?
sweets | diet | words | candy, cookie, ice cream, cake, chocolate, sweet, pies, dessert, doughnut, frzn novelt, syrup
  | buy sweets | sweets and desserts | sweet-toothed | Does @ like cakes and candy? | Is sugar a weakness of @?
  | Will @ buy chocolate soon? | Will @ give in to desserts next month?
snacks | diet | words | snack, chips, popcorn, cracker, nuts, snks, pretzel | buy snacks | snacks | snacking a lot | Does @
  nibble between meals? | Are crisps and nuts a habit of @? | Will @ buy chips soon? | Will @ pick up salty snacks next month?
soft_drinks | diet | words | soft drink, soda, cola, juice, water - carbonated, energy drink, pwdr/crystl, refrgratd juice
  | buy soft drinks | soft drinks | a drinker of soda | Does @ drink cola? | Are sugary drinks usual for @?
  | Will @ buy soda soon? | Will @ buy fizzy drinks next month?
coffee | diet | words | coffee, teas, espresso, latte., cappuccino, green tea, tea bag, dry tea, tea house | buy coffee or tea
  | coffee and tea | a coffee drinker | Does @ run on coffee? | Does @ visit cafes? | Will @ get a coffee soon?
  | Will @ stock up on tea or coffee?
alcohol | diet | words | beer, wine, liquor, whisky, cocktail, pub night, spirits, bar tab | buy alcohol
  | beer, wine and spirits | in the habit of drinking alcohol | Does @ drink? | Does @ enjoy a glass of wine?
  | Will @ buy beer or wine soon? | Will @ drink next month?
tobacco | diet | words | cigar, tobacco, smoking, vape | buy cigarettes | tobacco | a smoker | Does @ smoke?
  | Is @ hooked on nicotine? | Will @ smoke next month? | Will @ go on buying tobacco?
dairy | diet | words | fluid milk, milk by, milk carton, cheese, yogurt, butter, eggs, margarine, dairy, bread, rolls, cereal
  | buy milk and bread | milk, bread and cereal | well supplied with breakfast food | Does @ eat a proper breakfast?
  | Are dairy goods a staple of @? | Will @ buy eggs and cheese soon? | Will @ shop for breakfast?
baking | diet | words | baking, flour, sugars/sweet, spice, recipe, shortening, cookware, dry noodles, pasta, home cook, grocer
  | cook at home | home cooking | a keen cook | Does @ bake? | Is the stove in use where @ lives?
  | Will @ buy flour and spices? | Will @ cook for the family next month?
organic | diet | words | organic, natural, non-dairy, vegan, whole grain, farm shop, restricted diet, fair trade
  | buy organic food | organic food | particular about organic food | Does @ eat organic? | Is natural food worth more to @?
  | Will @ visit an organic shop? | Will @ pay extra for organic goods?
cleaning | home | words | laundry, detergent, household cleang, bleach, paper towel, bath tissue, soap, brooms, dishwash,
  trsh, air care, cleaning | buy cleaning supplies | cleaning and laundry | well stocked for cleaning | Does @ clean a lot?
  | Does @ run a household with much washing? | Will @ need detergent soon? | Will @ stock up on household paper?
home_garden | home | words | furnitur, furnishing, garden, hardware, domestic goods, housewares, sofa, lamp, renovat, houseplant
  | spend on home and garden | home and garden | doing up the home | Is @ a home maker? | Does @ own a house or garden?
  | Will @ buy furniture soon? | Will @ work on the home next month?
electronics | home | words | new phone, laptop, a tablet, headphone, electronic, phone gadget, audio/video, smart tv, camera
  | buy electronics | electronics | keen on gadgets | Is @ into technology? | Does @ own the latest devices?
  | Will @ buy a new device soon? | Will @ upgrade a phone or laptop next month?
fashion | home | words | clothes, dress., dresses, sneaker, fashion, apparel, jacket, hosiery, shoe, handbag | buy clothes
  | fashion | following fashion | Does @ care for clothes? | Does @ dress in style?
  | Will @ buy shoes or a jacket? | Will @ renew the wardrobe next month?
"""


@dataclass(frozen=True)
class Topic:
    """Hold one topic of life: which events speak of it, and how people ask about it.

    words     lower-case stems; a text speaks of the topic when a stem starts a word in it ("war." is the whole word only).
    measure   "words", or the behaviour that the answer is computed from: events, spend, basket, discount, private, weekend,
              evening, night, variety, stop, trend, spend_trend, modality:<name>.
    profile, future   wordings with `{user}` for the unit word; the last `HELD_OUT` of each are for tests only.
    does, thing, state   phrases for answers: "likely to <does>", "no sign of <thing>", "clearly <state>".
    """

    name: str
    domain: str
    words: tuple[str, ...]
    measure: str
    profile: tuple[str, ...]
    future: tuple[str, ...]
    does: str
    thing: str
    state: str


def match(texts) -> np.ndarray:
    """Say which texts speak of which topics: bool (text, topic), in the order of `TOPICS`.

    Example:
        >>> hit = match(["BABY FOODS", "beers/ales"])
        >>> [TOPICS[column].name for column in hit.argmax(axis=1)]
        ['baby', 'alcohol']
    """
    texts = pd.Series(list(texts), dtype=object).astype(str)
    hit = np.zeros((len(texts), len(TOPICS)), dtype=bool)
    for column, topic in enumerate(TOPICS):
        if topic.words:
            stems = "|".join(re.escape(word.rstrip(".")) + r"\b" * word.endswith(".") for word in topic.words)
            hit[:, column] = texts.str.contains(rf"(?<![a-z])(?:{stems})", case=False, regex=True)
    return hit


def by_name(name: str) -> Topic:
    """Find a topic by its name."""
    if name not in _BY_NAME:
        raise KeyError(f"no topic {name!r}: there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def _topic(row: str, place: int) -> Topic:
    name, domain, measure, stems, does, thing, state, *asked = " ".join(row.split()).replace("@", "this {user}").split(" | ")
    words = () if stems == "-" else tuple(word.strip() for word in stems.split(","))
    frames = PROFILE_FRAMES + WORD_FRAMES if measure == "words" else PROFILE_FRAMES
    profile, future = (
        [of[(3 * place + step) % len(of)].format(user="{user}", does=does, thing=thing, state=state) for step in range(count)]
        for of, count in ((frames, 5), (FUTURE_FRAMES, 4))
    )
    return Topic(name, domain, words, measure, (*profile, *asked[:2]), (*future, *asked[2:]), does, thing, state)


TOPICS: tuple[Topic, ...] = tuple(_topic(row, place) for place, row in enumerate(re.split(r"\n(?=\S)", TABLE.strip())))
TAUGHT: tuple[Topic, ...] = tuple(topic for topic in TOPICS if topic.name not in HELD_OUT_TOPICS)
_BY_NAME = {topic.name: topic for topic in TOPICS}
