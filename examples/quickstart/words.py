"""The words that the pre-training corpus is made of, by kind.

None of them is a word of a room or a device of the homes:
`tests/data/test_quickstart_data.py` checks.
"""


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(","))


NAMES = _list(
    "Anna Ben Clara Daniel Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olive Paul Rosa Sam "
    "Tara Victor Wendy Yara Adam Bella Carl Dora Eric Fiona George Hanna Ivan Julia Kevin Lucy "
    "Martin Nina Oscar Peter Rita Simon Tom Una Vera Walter Amir Chen Diego Elena Farah Goran "
    "Hugo Ingrid Jonas Karim Lena Mateo Nadia Omar Priya Quentin Ravi Sofia Tariq Ulla Yusuf Zoe"
)
CITIES = _list(
    "London Paris Berlin Madrid Rome Vienna Prague Oslo Dublin Lisbon Athens Warsaw Zurich Geneva "
    "Hamburg Munich Lyon Milan Turin Naples Seville Porto Bergen Malmo Turku Riga Vilnius Krakow "
    "Boston Denver Seattle Dallas Toronto Ottawa Quito Lima Cairo Tunis Delhi Mumbai Tokyo Osaka"
)
PLACES = _phrases(
    "market, library, school, museum, theatre, station, harbour office, bakery, village hall, "
    "post office, bridge, river bank, old castle, town square, park, forest, beach, mountain hut, "
    "hospital, cinema, church, factory, farm shop, hotel, airport, bus stop, swimming pool, "
    "football field, book shop, corner shop, toy shop, lake, island, desert, valley, workshop"
)
ITEMS = _phrases(
    "book, pencil, basket, bicycle, umbrella, jacket, shoe, hat, scarf, ring, watch, camera, "
    "guitar, violin, drum, ball, kite, puzzle, doll, ticket, letter, map, stamp, coin, purse, "
    "bottle, cup, plate, spoon, knife, blanket, pillow, ladder, hammer, rope, bucket, brush, "
    "candle, mirror, notebook, ruler, backpack, tent, paddle, helmet, necklace, newspaper, "
    "paint box, chess set, rain coat, tea cup, tool kit, picture frame, flower pot, wooden chair, "
    "wool sweater, leather belt, silver spoon, paper bag, garden chair, tennis racket, snow boots"
)
FOODS = _phrases(
    "bread, butter, cheese, rice, pasta, soup, salad, apple, pear, plum, cherry, lemon, orange, "
    "potato, tomato, onion, carrot, pepper, garlic, bean, pea, corn, egg, fish, chicken, honey, "
    "sugar, salt, flour, milk, cream, chocolate, cake, pancake, biscuit, noodle, mushroom, "
    "spinach, apple pie, fried rice, tomato soup, lemon cake, fruit salad, goat cheese, "
    "brown bread, green tea, black coffee, peanut butter, olive oil, vegetable stew, bean burger, "
    "fish pie"
)
ANIMALS = _list(
    "cat dog horse cow sheep goat pig duck hen rabbit mouse fox wolf bear deer lion tiger elephant "
    "monkey parrot owl eagle swan frog turtle snake whale dolphin seal otter beaver hedgehog"
)
COLOURS = _list(
    "red blue green yellow black white brown grey pink purple orange silver golden violet turquoise"
)
ADJECTIVES = _list(
    "big small old new happy sad quiet loud fast slow kind brave clever gentle strange bright dark "
    "warm cold soft hard heavy empty full clean dirty young tall short long wide narrow deep fresh "
    "sweet bitter sharp smooth rough simple rich poor busy lazy proud shy calm wild rare common"
)
MATERIALS = _list(
    "wood stone glass iron gold silk wool cotton paper clay leather plastic copper steel rubber"
)
JOBS = _list(
    "teacher doctor baker farmer painter singer driver pilot sailor nurse writer lawyer builder "
    "dancer student engineer tailor fisher guard cook judge actor chemist librarian"
)
SUBJECTS = _list(
    "history maths physics chemistry music art geography biology English French Spanish drawing "
    "reading poetry sport singing astronomy grammar"
)
DAYS = _list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _list(
    "January February March April May June July August September October November December"
)
TIMES = _phrases(
    "in the morning, at noon, in the evening, at night, after lunch, before dinner, today, "
    "tomorrow, at dawn, next week, this afternoon, at sunset, every day, once a week, right now"
)
WEATHER = _list("sunny rainy windy cloudy foggy stormy snowy icy misty mild")
SONGS = _phrases(
    "silver moon, river song, long road, blue morning, paper boats, winter dance, golden hour, "
    "city rain, quiet heart, wild horses, summer train, northern sky, last letter, first snow"
)
PAST_VERBS = _phrases(
    "found, lost, bought, sold, carried, painted, cleaned, hid, washed, borrowed, dropped, "
    "repaired, showed, packed, wrapped, counted, measured, admired, forgot, looked for, picked up"
)
KEYS = _phrases(
    "item, name, colour, size, count, place, city, day, month, owner, price, title, author, kind, "
    "type, state, value, action, zone, part, status, level, amount, label, code, "
    "target, origin, food, animal, material, weight, speed, time, task, person, group, note, unit, "
    "number, area, object, tool, job, subject, song, artist, mood, shape, order, team, score"
)
COMMON = _list(
    "time year way day thing man world life hand part child eye woman place work week case point "
    "company number group problem fact water money story month lot right study word business issue "
    "side kind head service friend father power hour game line end member law car name "
    "president team minute idea kid body information back parent face others level office door "
    "health person art war history party result change morning reason research girl guy moment air "
    "teacher force education set open close turn switch start stop make take give put get keep "
    "bring send call ask need want like love help show move play run walk write read hear see "
    "know think feel tell find leave begin seem talk follow learn lead understand watch create "
    "speak allow add spend win offer remember consider appear buy wait serve die build stay fall "
    "cut reach kill raise pass sell require report decide pull percent degrees half quarter off on "
    "up down over under near left middle top bottom north south east west zero one two three four "
    "room device percentage five six seven eight nine ten twenty thirty forty fifty "
    "sixty hundred thousand"
)

WORDS: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "city": CITIES,
    "place": PLACES,
    "item": ITEMS,
    "food": FOODS,
    "animal": ANIMALS,
    "colour": COLOURS,
    "adj": ADJECTIVES,
    "material": MATERIALS,
    "job": JOBS,
    "subject": SUBJECTS,
    "day": DAYS,
    "month": MONTHS,
    "time": TIMES,
    "weather": WEATHER,
    "song": SONGS,
    "did": PAST_VERBS,
    "key": KEYS,
    "common": COMMON,
}

# What made-up words are put together from.
ONSETS = _list("b c d f g h j k l m n p r s t v w z")
CLUSTERS = _list("bl br ch cl cr dr fl fr gl gr pl pr sh sl sm sn sp st str th tr tw wh sc")
VOWELS = _list("a e i o u a e i o ee oo ou ai ea")
CODAS = _list("b d f g k l m n p r s t ck ft ld ll lt mp nd ng nk nt rd rk rm rn rt sh ss st tch")
MARKS = _list("x q z")
