"""The words of the sample world: what its users buy, open, browse and search for, theme by theme."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# theme | modalities, with weight | traits that call it | price, verb on a bill | section of a page path | things | apps
# A theme named like a task has no weight: it is emitted in the months in which the task comes true, and only then.
THEMES = """
Active | app, mini | - | 5 sent | friends | a long chat, a photo story, a voice message, a group plan | Circle Chat, Daily
  Feed, Town Talk
Concert | bill, search | - | 70 bought | live music | two concert tickets, a festival pass, a front row concert seat, a gig
  ticket for tonight | Encore Tickets, Gig Guide, Stage Door
Login | spm, app | - | 1 paid | check-in | seven day streak kept, daily check-in done, morning check-in bonus | Streak
  Check-in, Morning Check-in, Daily Login
Forest | spm, mini | - | 3 gave | green energy | plant a tree today, a tree for the desert, collect morning green energy,
  water my tree | Tree Planters, Green Energy, Forest Friends
Fraud | bill, app | - | 240 sent | security | money to an unknown payee, a gift card code to a stranger, a payment later
  blocked, a chargeback payment | Hidden VPN, Bulk SMS Sender, Code Resell
Money | bill, search | - | 150 took | cash | a cash advance, a payday cash loan, quick cash until payday, a cash reserve
  drawdown | Payday Bridge, Quick Cash, Cash Reserve
Takeout | bill, app | - | 16 ordered | food | a takeout dinner, takeout for two, a late takeout burger, a takeout noodle bowl
  | Bento Takeout, Rider Takeout, Burger Takeout
Brand | bill, spm | - | 85 paid for | brands | a brand flagship store order, a limited edition brand item, the new brand
  collection, a brand anniversary release | Flagship Store, Brand Street, Official Store
Promo | mini, spm | - | 9 claimed | offers | a promo code, the weekend campaign offer, a cashback promo, a lucky draw promo |
  Promo Hall, Campaign Corner, Cashback Club
Value | bill, search | - | 900 bought | big purchases | a large smart TV, a designer watch, a first class flight, a new laptop
  | Grand Avenue, Crown Stores, Summit Store
chat | app 2, mini 2 | activity 1, social .4 | 5 sent | friends | group stories, friend updates, short videos, a birthday
  message | Pocket Chat, Neighbour Feed, Clip Stream
news | app 2, mini | activity .7 | 3 paid for | news | local headlines, match results, celebrity talk, city notices | Metro
  Headlines, Front Page, Score Board
login | spm 2, app | routine 1 | 1 paid | check-in | daily check-in page, sign in history, streak calendar, check in gifts |
  Check-in Diary, Sign in Keeper, Streak Counter
planner | spm, app 2 | routine .9 | 2 paid for | tools | alarm at six, weekly plan, shopping list, habit tracker | Calendar
  Plus, To Do List, Morning Alarm
concerts | bill 1.5, search 2 | music 1, social .3 | 35 bought | live music | live music nights, an indie band poster, jazz
  concert dates, a festival shirt, an orchestra programme | Concert Hall, Bandstand, Festival Finder
music | search 1.5, bill .7 | music .8 | 12 bought | music | vinyl records, live music albums, band lyrics, guitar strings for
  my band | Vinyl Corner, Band Records, Live Music Box
forest | spm 2, mini 2 | green 1 | 4 gave | green energy | forest ranking, carbon diary, recycling points, green energy from
  walking, trees of my friends | Ant Forest Walk, Carbon Diary, Recycle Now
organic | mini 1.5, spm | green .7, health .3 | 22 bought | farm | organic vegetables, natural soap, vegan lunch, whole grain
  bread | Organic Basket, Farm Shop, Fair Trade Corner
fraud | bill 1.2, app 1.6 | fraud 1.1 | 90 sent | security | money to a new device wallet, resell phone credit, a gift card
  code, a verification code fee | Second Wallet VPN, Mass SMS Verify, Resell Market
gambling | app 1.3 | fraud .6, cash_need .4 | 20 paid for | play | lottery numbers, a scratch card, a sports bet, poker chips
  | Lucky Lottery, Poker Night, Sure Bet
cash_advance | bill 1.3, search 2 | cash_need 1 | 80 took | cash | a cash loan, money before payday, a pawn shop offer, a cash
  loan extension | Cash Loan Express, Pawn Point, Payday Friend
late_fees | bill 1.5 | cash_need .9 | 18 was charged | bills | a late fee, an overdraft fee, an overdue notice fee, an unpaid
  bill surcharge | Harbour Bank, Union Bank, Card Centre
credit | bill 1.3, search .7 | cash_need .6 | 60 paid | credit | a credit card minimum, an instalment, a loan repayment, a
  credit limit fee | Harbour Credit, Union Credit, Easy Instalments
takeout | bill 2.5, app 2.2 | takeout 1 | 14 ordered | food | fried chicken, a burger menu, milk tea, sushi for one, a noodle
  bowl, a pizza delivery | Quick Food Delivery, Milk Tea Dash, Sushi Rider
snacks | bill 1.2 | takeout .6, night .2 | 5 bought | food | potato chips, salted nuts, chocolate cookies, popcorn, ice cream
  | Corner Snacks, Sweet Tooth, Night Kiosk
brand | bill 1.8, spm 2 | brand 1 | 70 bought | brands | sneakers from the official store, a brand jacket, the brand new
  collection, limited edition cosmetics | Northwind Official Store, Aurora Flagship, Lumen Brand
fashion | bill, spm 1.5 | brand .6 | 45 bought | clothes | a summer dress, running shoes, a handbag, a denim jacket, warm
  clothes | Fashion Lane, Shoe Loft, Dress Circle
promo | mini 2, spm 2 | thrift 1 | 6 claimed | offers | a special offer, cashback on lunch, a sale event gift, a promo game |
  Special Offers, Cashback Hunt, Sale Event Guide
bargains | mini 1.5 | thrift .9 | 11 bought | offers | a flash sale, group buy fruit, clearance shirts, second hand books |
  Bargain Bay, Group Buy, Flash Sale
price_compare | spm 1.3 | thrift .8 | 8 paid for | compare | compare phone prices, price drop alarms, the cheapest rice,
  lowest fares | Price Compare, Cheapest First, Price Alert
luxury | bill 1.4, search 2 | wealth 1 | 260 bought | boutique | a designer bag, jewellery, imported wine, a fine dining menu,
  a luxury spa | Luxury Row, Boutique House, Jewel Box
investing | search 1.3, bill .8 | wealth .8 | 400 bought | wealth | index fund units, stocks, gold price certificates,
  government bonds | Broker One, Wealth Desk, Invest Easy
saving | spm .2, app .2 | cash_need -.5, routine .3 | 90 moved | savings | a term deposit, monthly savings, a rainy day fund |
  Piggy Savings, Saving Jar, Term Deposit
salary | bill .3 | cash_need -.2 | 1800 received | bills | monthly salary, a wage payment, payroll bonus | Payroll Bank,
  Harbour Payroll, Union Wages
household_bills | bill .5, mini .3 | family .3 | 45 paid | bills | the electric bill, the water bill, monthly rent, the phone
  bill | Phone Bill Pay, Electric Bill Pay, Rent Desk
transfers | bill 1.2, mini .8 | social .9 | 30 sent | friends | a red packet, money to a friend, a transfer to mum, split the
  bill money | Red Packet, Split the Bill, Easy Transfer
parties | mini, search .8 | social .7 | 28 bought | gifts | a birthday gift, party balloons, a bouquet, greeting cards | Party
  Planner, Gift Finder, Bouquet House
travel | bill 1.3, search 1.2, app | travel 1.1 | 160 booked | trips | a flight, a hotel weekend, a train ticket, airport
  parking, a beach resort | Flight Finder, Hotel Key, Train Ticket Pass
commute | mini .4, bill .3 | routine .3 | 3 paid for | transport | the metro, a bus ride, a bike share trip, a taxi home |
  Metro Pass, Ride Hail, Bike Share
cars | bill .2, app .2 | family .3, wealth .2 | 50 paid for | car | fuel, parking, a car wash, a motorway toll | Fuel Card,
  Parking Spot, Car Wash Club
baby | bill, search | family .8 | 32 bought | family | diapers, baby formula, a stroller, toddler socks | Baby Nest, Toddler
  Time, Diaper Club
children | bill, mini 1.2 | family 1 | 26 paid for | family | school lunch, a toy set, kids swimming, a maths tutor, school
  stationery | School Board, Kids Corner, Toy Chest
pets | bill .3, search .2 | family .3 | 24 bought | pets | dog food, cat litter, a vet visit, cat food, pet care spray | Pet
  Care Club, Dog Walk, Kitten Shop
medicine | bill .2, mini .2 | health -.5 | 20 paid for | health | cold and flu medicine, a clinic visit, the pharmacy, a
  doctor call | Pharmacy Now, Doctor Line, Clinic Desk
vitamins | bill .8, search | health .8 | 25 bought | health | vitamin tablets, protein supplements, low fat yogurt, a diet
  plan | Vitamin Store, Diet Coach, Nutrition Hub
fitness | app 1.4, search .8 | health 1 | 30 paid for | sport | a gym month, yoga class, running shorts, a marathon entry |
  Gym Buddy, Running Log, Yoga Flow
games | app 1.5, search .7 | night .7 | 10 paid for | games | a puzzle game, console games, an esport final, mobile game coins
  | Puzzle Games, Esport Arena, Mobile Game Box
scifi | app .4, search .2 | night .5 | 6 rented | films | a science fiction series, a horror night, an anime season, a fantasy
  saga | Anime Night, Horror Box, Fantasy Realm
cinema | mini .3, search .2 | social .4 | 13 bought | films | a cinema seat, a romance film, a drama series, a movie night |
  Cinema Club, Movie Map, Film Festival
learning | app .3, search .3 | routine .3, health .1 | 20 paid for | study | an English course, exam papers, a history book, a
  magazine | Language Lessons, Book Shelf, Exam Prep
baking | bill .5, search .2 | takeout -.5, family .3 | 24 bought | groceries | flour and eggs, pasta sauce, a home cooking
  recipe, spices | Grocery Basket, Home Cooking, Recipe Box
produce | bill .5, mini .2 | takeout -.3, health .2 | 17 bought | groceries | fresh vegetables, fruit, salad leaves, tomatoes,
  berries | Fresh Vegetables, Fruit Stand, Farmers Market
alcohol | bill .2 | night .4, social .3 | 19 bought | drinks | craft beer, red wine, a cocktail, whisky | Beer Garden, Wine
  Cellar, Cocktail Bar
home_garden | bill .2, spm .3 | family .4 | 75 bought | home | a sofa, a garden chair, a desk lamp, new furniture | Sofa
  House, Garden World, Lamp Shop
beauty | bill .2, spm .3 | brand .3 | 22 bought | beauty | skin care cream, makeup, a hair care set, lipstick | Skin Clinic,
  Makeup Room, Nail Salon
electronics | spm .4, search .3 | night .3, wealth .2 | 120 bought | devices | headphones, a tablet, a smart TV, phone gadgets
  | Gadget Lab, Tablet Town, Laptop Hub
notice | bill .6, mini .8, spm .8, app .8, search .6 | - | 8 paid for | general | the weather, a parcel, language settings, a
  map, a survey, help | Weather Window, Parcel Box, City Map
"""
TEXTS = {  # templates of a modality; every text names its theme by a thing or an app
    "bill": ("{verb} {thing}", "{verb} {thing} via {app}", "{verb} {thing}, {app} receipt"),
    "mini": ("opened the {app} mini program", "browsed {thing} in the {app} mini program"),
    "spm": ("home > {section} > {thing}", "{section} > {thing} > details", "{section} > {app} > {thing}"),
    "app": ("opened {app} app", "long session in {app} app", "notification from {app} app"),
    "search": ("searched for {thing}", "looked up {thing} online"),
}


@dataclass(frozen=True)
class Theme:
    """Hold one subject of events: where it shows (with weight), which traits call it, its price, its texts by modality."""

    name: str
    weight: dict[str, float]
    load: dict[str, float]
    price: float
    texts: dict[str, tuple[str, ...]]


def rows(table: str) -> list[list[str]]:
    """Cut a table of text into rows of fields; an indented line goes on with the row above."""
    return [[field.strip() for field in row.split("|")] for row in table.replace("\n  ", " ").strip().splitlines()]


def weights(field: str) -> dict[str, float]:
    """Read "app 2, mini" as numbers by name; without a number it is 1, and "-" is nothing."""
    pairs = (part.split() for part in field.split(",") if part.strip() != "-")
    return {pair[0]: float(pair[1]) if len(pair) > 1 else 1.0 for pair in pairs}


@cache
def themes() -> tuple[Theme, ...]:
    """Read the table of themes, each with its texts.

    Example:
        >>> themes()[0].texts["app"][0]
        'opened Circle Chat app'
    """
    out = []
    for name, modalities, traits, bill, section, things, apps in rows(THEMES):
        price, verb = bill.split(" ", 1)
        texts = {}
        for modality in weights(modalities):
            filled = (
                template.format(verb=verb, section=section, thing=thing.strip(), app=app.strip())
                for template in TEXTS[modality]
                for thing in things.split(",")
                for app in apps.split(",")
            )
            texts[modality] = tuple(dict.fromkeys(filled))
        out.append(Theme(name, weights(modalities), weights(traits), float(price), texts))
    return tuple(out)
