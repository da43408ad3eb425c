"""The sentences of the pre-training corpus, with `{kind}` where a word of that kind goes.

A slot with a number after its kind is another word of the kind: `{name}` and `{name2}` are two
people. A slot keeps its word throughout a document.
"""

from dataclasses import dataclass

OPENINGS = (
    "One {weather} day, {name} the {job} went to the {place} in {city}.",
    "{name} and {name2} lived near the {place}.",
    "Last {month}, {name} {did} a {adj} {item} at the {place}.",
    "There was once a {adj} {animal} that lived by the {place}.",
    "On {day}, {name} {did} the {adj} {item}.",
    "{name} is a {adj} {job} who works at the {place}.",
)
STORY = (
    "There {name} {did} a {colour} {item} made of {material}.",
    "{name2} {did} it {time}.",
    "The {animal} was {adj} and {adj2}, but {name} was not afraid.",
    '"Is this your {item}?" asked {name2}.',
    '"No," said {name}, "mine is {colour} and {adj2}."',
    "They ate {food} with {food2} and talked about {subject}.",
    "It was {weather}, so they stayed at the {place2} until {day2}.",
    "{name} gave the {item} to {name2}, and {name2} was {adj2}.",
    "Then the {animal} ran away to the {place2}.",
    "In the end {name} took the {item} back to {city}.",
    "After that, {name} always kept a {item} in the {item2}.",
)
DESCRIPTIONS = (
    "The {place} in {city} is {adj} and {adj2}. People go there {time} to see the {animal}.",
    "A {item} is usually made of {material}. This one is {colour}, {adj} and rather {adj2}.",
    "My {item} is {colour}. {name}'s {item} is {colour2}. Both are {adj}.",
    "The {animal} is a {adj} animal. It is {colour} and likes {food}.",
    "{city} is {adj} in {month} and {weather} in {month2}.",
)
FACTS = (
    "There are seven days in a week. The first working day is Monday.",
    "A {job} in {city} earns {number} coins a day and {number2} coins a week.",
    "It takes {number} minutes to walk from the {place} to the {place2}.",
    "The {animal} can live for {number} years, the {animal2} for {number2} years.",
    "{number} grams of {material} weigh as much as {number} grams of {material2}.",
    "The road from {city} to {city2} is {number} miles long and crosses a {adj} bridge.",
)
DIALOGUES = (
    "A: Where is {name}?\nB: At the {place}.\nA: And {name2}?\nB: At the {place2}.",
    "A: What would you like?\nB: {food} and {food2}, please.\nA: Here you are, {food} and {food2}.",
    "A: When does the {subject} lesson start?\nB: On {day}, {time}.\nA: On {day}? Thank you.",
    "A: Do you have a {colour} {item}?\nB: No, only a {colour2} {item}.\nA: I take the {colour2} "
    "one then.",
    "{name}: I lost my {item}.\n{name2}: Was it at the {place}?\n{name}: No, at the {place2}.",
)
RECIPES = (
    "Recipe for {food}: mix {number} grams of {food2} with {number2} grams of {food3}. Stir, wait "
    "{number3} minutes and serve with {food4}.",
    "To cook {food}, cut the {food2}, add {food3} and a little {food4}. Boil for {number} minutes.",
    "For {food} you need {food2}, {food3} and {food4}. First wash the {food2}, then cut the "
    "{food3}, last add the {food4}.",
)
TRAVEL = (
    "We left {city} on {day} and reached {city2} on {day2}. From {city2} we took a bus to {city3}.",
    "The train from {city} to {city2} leaves at {number} past nine. A ticket costs {number2} "
    "euros.",
    "In {month} we visited the {place} in {city}. It was {weather}, and we bought a {item}.",
    "{name} travelled to {city} by boat, {name2} went to {city2} by train.",
)
SCHOOL = (
    "{name} has {subject} on {day} and {subject2} on {day2}. {name} likes {subject2} better.",
    "In the {subject} class there are {number} pupils. {name} sits beside {name2}.",
    "Homework for {day}: read {number} pages about {subject} and draw a {animal}.",
)
SHOPS = (
    "The shop at the {place} sells {item}, {item2} and {item3}. The {item2} costs {number} euros.",
    "{name} paid {number} euros for the {item} and {number2} euros for the {item2}.",
    "Today only: {adj} {item} for {number} euros, {adj2} {item2} for {number2} euros!",
)
PROSE = (DESCRIPTIONS, FACTS, DIALOGUES, RECIPES, TRAVEL, SCHOOL, SHOPS)

QUESTIONS = (
    ("{name} has a {colour} {item}.", "What colour is the {item}?", "{colour}"),
    ("{name} has a {colour} {item}.", "What does {name} have?", "a {colour} {item}"),
    ("{name} went to the {place} on {day}.", "Where did {name} go?", "the {place}"),
    ("{name} went to the {place} on {day}.", "When did {name} go?", "{day}"),
    ("{name} eats {food}. {name2} eats {food2}.", "What does {name} eat?", "{food}"),
    ("{name} eats {food}. {name2} eats {food2}.", "What does {name2} eat?", "{food2}"),
    ("{name} eats {food}. {name2} eats {food2}.", "Who eats {food2}?", "{name2}"),
    ("The {item} is in {city}. The {item2} is in {city2}.", "Where is the {item}?", "{city}"),
    ("The {item} is in {city}. The {item2} is in {city2}.", "Where is the {item2}?", "{city2}"),
    ("The {item} costs {number}, the {item2} {number2}.", "How much is the {item}?", "{number}"),
    ("The {item} costs {number}, the {item2} {number2}.", "How much is the {item2}?", "{number2}"),
    ("The {animal} is at the {place}, {adj} and {adj2}.", "What is at the {place}?", "{animal}"),
)


@dataclass(frozen=True)
class Domain:
    """A way of saying things in JSON.

    `keys` are the object's keys in order, each with the kind of its value; `intents` are the
    sentences by what they ask for, which is the value of `intent_key`. A key that a sentence does
    not mention is left out.
    """

    intent_key: str
    keys: dict[str, str]
    intents: dict[str, tuple[str, ...]]


DOMAINS = (
    Domain(
        "order",
        {"item": "item", "colour": "colour", "quantity": "number", "shop": "place"},
        {
            "buy": (
                "buy {quantity} {colour} {item} at the {shop}",
                "order the {colour} {item} from the {shop}",
                "get me {quantity} pieces of the {item} from the {shop}",
                "at the {shop} pick up {quantity} times the {item}, in {colour}",
            ),
            "return": (
                "return the {item} to the {shop}",
                "take the {colour} {item} back to the {shop}",
                "the {shop} should have the {item} back",
            ),
            "reserve": (
                "hold the {item} at the {shop} for me",
                "put the {colour} {item} aside at the {shop}",
            ),
        },
    ),
    Domain(
        "ticket",
        {"from": "city", "to": "city", "day": "day", "seats": "number"},
        {
            "book": (
                "book a train from {from} to {to} on {day}",
                "I need {seats} seats to {to} from {from}",
                "{day} train to {to}, starting in {from}, {seats} people",
            ),
            "cancel": (
                "cancel the train to {to} on {day}",
                "drop my {day} trip from {from} to {to}",
            ),
        },
    ),
    Domain(
        "loan",
        {"title": "phrase", "reader": "name", "days": "number"},
        {
            "lend": (
                "lend {title} to {reader} for {days} days",
                "{reader} would like to borrow {title}",
                "let {reader} have {title}, {days} days at most",
            ),
            "give_back": (
                "{reader} brings back {title}",
                "take {title} back from {reader}",
            ),
            "extend": (
                "{reader} keeps {title} for {days} more days",
                "extend {title} by {days} days for {reader}",
            ),
        },
    ),
    Domain(
        "parcel",
        {"content": "item", "city": "city", "weight": "number", "to": "name"},
        {
            "send": (
                "send the {content} to {to} in {city}",
                "post {weight} kilos of {content} to {city}",
                "{to} in {city} should get the {content}, {weight} kilos",
            ),
            "track": (
                "where is the {content} for {to}",
                "track my parcel with the {content} to {city}",
            ),
        },
    ),
    Domain(
        "contact",
        {"name": "name", "city": "city", "phone": "number", "job": "job"},
        {
            "add": (
                "add {name} from {city}, phone {phone}",
                "new contact: {name}, {job} in {city}",
                "save the number {phone} under {name}",
            ),
            "remove": ("delete {name} from {city}", "forget the {job} {name}"),
            "call": ("call {name} the {job}", "ring {name} in {city} on {phone}"),
        },
    ),
    Domain(
        "music",
        {"song": "song", "artist": "name", "list": "phrase", "volume": "number"},
        {
            "play": (
                "play {song} by {artist}",
                "I want to hear {song} from the list {list}",
                "put on {song} at volume {volume}",
            ),
            "save": ("add {song} to {list}", "keep {song} by {artist} in {list}"),
            "skip": ("skip {song} in {list}", "not {song} by {artist} again"),
        },
    ),
    Domain(
        "meal",
        {"dish": "food", "side": "food", "table": "number", "guest": "name"},
        {
            "serve": (
                "bring {dish} with {side} to table {table}",
                "{guest} at table {table} would like {dish}",
                "{dish} and {side} for {guest}",
            ),
            "refuse": ("no {dish} for {guest}", "take the {dish} away from table {table}"),
        },
    ),
    Domain(
        "zoo",
        {"animal": "animal", "place": "place", "food": "food", "grams": "number"},
        {
            "feed": (
                "feed the {animal} at the {place} {grams} grams of {food}",
                "give {food} to the {animal} at the {place}",
                "the {place} {animal} gets {grams} grams of {food}",
            ),
            "move": ("move the {animal} to the {place}", "bring the {animal} over to the {place}"),
            "wash": ("wash the {animal} at the {place}", "the {place} {animal} needs a bath"),
        },
    ),
    Domain(
        "stock",
        {"place": "place", "item": "item", "count": "number"},
        {
            "add": (
                "put {count} {item} into the {place}",
                "{place}: {count} more of the {item}",
                "raise the {item} at the {place} by {count}",
            ),
            "set": (
                "the {place} {item} is to be {count}",
                "make it {count} for the {item} at the {place}",
                "bring the {item} in the {place} to {count}",
            ),
            "clear": (
                "no more {item} in the {place}",
                "clear the {place} {item}",
                "throw out the {item} at the {place}",
            ),
        },
    ),
    Domain(
        "class",
        {"subject": "subject", "teacher": "name", "day": "day", "pupils": "number"},
        {
            "plan": (
                "{subject} with {teacher} on {day}",
                "plan a {subject} lesson on {day} for {pupils} pupils",
                "{teacher} teaches {pupils} pupils {subject}",
            ),
            "drop": ("no {subject} on {day}", "{teacher} does not teach {subject} on {day}"),
        },
    ),
)

POLITE = (
    ("", "."),
    ("please ", "."),
    ("", ", please."),
    ("could you ", "?"),
    ("I would like you to ", "."),
    ("hey, ", "!"),
    ("would you kindly ", "?"),
    ("", " now."),
    ("it is late, so ", "."),
    ("", ""),
)
PAIRINGS = (
    "the {key} is {value}",
    "{key} {value}",
    "{value} as the {key}",
    "{value} is the {key}",
    "its {key} should be {value}",
    "with {value} for {key}",
    "{key}: {value}",
)
