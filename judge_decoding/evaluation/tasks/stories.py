"""The wordings of the word problems: stories, their steps, and numbers that do not matter."""

from __future__ import annotations

from dataclasses import dataclass

PEOPLE = {
    "Amara": ("she", "her"),
    "Ben": ("he", "his"),
    "Chen": ("he", "his"),
    "Dalia": ("she", "her"),
    "Elif": ("she", "her"),
    "Felix": ("he", "his"),
    "Grace": ("she", "her"),
    "Hassan": ("he", "his"),
    "Ines": ("she", "her"),
    "Jonas": ("he", "his"),
    "Keiko": ("she", "her"),
    "Luis": ("he", "his"),
    "Maya": ("she", "her"),
    "Nikhil": ("he", "his"),
    "Olga": ("she", "her"),
    "Pablo": ("he", "his"),
    "Rosa": ("she", "her"),
    "Samuel": ("he", "his"),
    "Tariq": ("he", "his"),
    "Wanda": ("she", "her"),
}
"""Name -> (she, her)."""


@dataclass(frozen=True)
class Story:
    """steps: kind of step -> its wordings; endings: the kinds of ENDINGS that fit."""

    name: str
    things: tuple[str, ...]
    opening: tuple[str, ...]
    question: tuple[str, ...]
    steps: dict[str, tuple[str, ...]]
    endings: tuple[str, ...] = ("price", "share")


SHARED_STEPS = {
    "double": (
        "After that, the number of {things} doubles.",
        "Then the number of {things} becomes twice as large.",
    ),
    "triple": (
        "Soon the number of {things} is three times as large as it was before.",
        "Then the number of {things} triples.",
    ),
    "half": (
        "Later, only half of the {things} are left.",
        "Then half of all the {things} are taken away.",
    ),
    "part": (
        "Then one out of every {k} {things} is taken away.",
        "Later, one in {k} of the {things} turns out to be unusable and is removed.",
    ),
    "percent": (
        "Then {k}% of the {things} are removed.",
        "A little later, the number of {things} drops by {k} percent.",
    ),
}
"""Steps that fit every story."""

ENDINGS = {
    "price": (
        (
            "In the end, {name} sells all the {things} for ${n} each.",
            "How many dollars does {name} get?",
        ),
        (
            "A buyer pays {n} dollars for each of the {things} that are left, and takes them all.",
            "How much money, in dollars, does the buyer pay?",
        ),
    ),
    "share": (
        (
            "Finally, {name} divides the {things} equally among {k} people.",
            "How many {things} does each person get?",
        ),
        (
            "At the end, the {things} are packed into {k} crates, with the same number in each.",
            "How many {things} are in one crate?",
        ),
    ),
}
"""Kind of a last step -> pairs (its wording, the question)."""

DISTRACTORS = (
    "{name} is {n} years old.",
    "{Her} house has the number {n}.",
    "All of this takes {n} minutes.",
    "A friend of {name} lives {n} kilometers away.",
    "It is {n} degrees outside.",
    "{She} listened to {n} songs in the meantime.",
    "{Her} neighbor owns {n} books.",
    "The day before, {name} walked {n} blocks.",
)
"""Sentences whose number does not matter."""

STORIES = (
    Story(
        "bakery",
        ("muffins", "bagels", "scones", "rolls"),
        (
            "{name} runs a small bakery and has {n} {things} on the shelf in the morning.",
            "When {name} opens the bakery, there are {n} {things}.",
        ),
        ("How many {things} are there now?", "How many {things} does the bakery have at the end?"),
        {
            "gain": (
                "{She} bakes {n} more {things}.",
                "Another {n} {things} come out of the oven.",
            ),
            "lose": ("Customers buy {n} {things}.", "{name} sells {n} of the {things}."),
            "gain_groups": ("{She} brings in {k} trays with {n} {things} on each.",),
            "lose_groups": ("{k} customers buy {n} {things} each.",),
        },
    ),
    Story(
        "collection",
        ("stickers", "marbles", "stamps", "trading cards", "coins"),
        (
            "{name} collects {things} and has {n} of them.",
            "There are {n} {things} in {name}'s collection.",
        ),
        ("How many {things} does {name} have now?", "What is the number of {things} in the end?"),
        {
            "gain": (
                "An aunt gives {name} {n} {things}.",
                "{She} finds {n} more {things} at a flea market.",
            ),
            "lose": ("{She} gives {n} {things} to a friend.", "{name} loses {n} of the {things}."),
            "gain_groups": ("{She} buys {k} packs of {n} {things}.",),
            "lose_groups": ("{She} trades away {k} sets of {n} {things}.",),
        },
    ),
    Story(
        "orchard",
        ("apples", "pears", "plums", "peaches"),
        (
            "{name} picks {n} {things} in the orchard.",
            "{name} starts the harvest with {n} {things} in the cart.",
        ),
        ("How many {things} are in the cart now?", "How many {things} does {name} have?"),
        {
            "gain": ("{She} picks {n} more.", "A helper adds {n} {things}."),
            "lose": ("{n} {things} are bruised and thrown away.", "The birds eat {n} of them."),
            "gain_groups": ("From {k} trees, {she} picks {n} {things} each.",),
            "lose_groups": ("{She} fills {k} baskets with {n} {things} each and sends them away.",),
        },
    ),
    Story(
        "library",
        ("novels", "comics", "magazines", "atlases"),
        (
            "A small library has {n} {things}, and {name} looks after them.",
            "{name} counts {n} {things} in the school library.",
        ),
        ("How many {things} are in the library now?", "How many {things} are there at the end?"),
        {
            "gain": ("Readers return {n} {things}.", "The town donates {n} more {things}."),
            "lose": (
                "Readers borrow {n} {things}.",
                "{name} lends {n} {things} to another school.",
            ),
            "gain_groups": ("{k} boxes arrive with {n} {things} in each.",),
            "lose_groups": ("{k} classes borrow {n} {things} each.",),
        },
    ),
    Story(
        "savings",
        ("dollars",),
        ("{name} has saved {n} {things}.", "There are {n} {things} in {name}'s money box."),
        ("How many {things} does {name} have now?", "How much money, in dollars, is left?"),
        {
            "gain": (
                "{Her} grandmother gives {name} {n} {things}.",
                "{She} earns {n} {things} by mowing a lawn.",
            ),
            "lose": (
                "{She} spends {n} {things} on a present.",
                "A repair costs {name} {n} {things}.",
            ),
            "gain_groups": ("For {k} weeks, {she} saves {n} {things} per week.",),
            "lose_groups": ("{She} buys {k} tickets for {n} {things} each.",),
            "double": ("{Her} uncle then doubles the money.",),
            "triple": ("A lucky sale then turns the money into three times as much.",),
            "half": ("Then {she} gives half of the money to charity.",),
            "part": ("Then {she} pays 1/{k} of all the money to {her} brother.",),
            "percent": ("Then {she} loses {k} percent of the money on a bad deal.",),
        },
        (),
    ),
    Story(
        "train",
        ("passengers",),
        (
            "A train leaves the station with {n} {things}, and {name} is the conductor.",
            "{name} drives a train that has {n} {things} on board.",
        ),
        ("How many {things} are on the train now?", "How many {things} arrive at the last stop?"),
        {
            "gain": (
                "At the next stop, {n} {things} get on.",
                "{n} more {things} board the train.",
            ),
            "lose": ("At the next stop, {n} {things} get off.", "{n} {things} leave the train."),
            "gain_groups": ("{k} school groups of {n} {things} each get on.",),
            "lose_groups": ("{k} tour groups of {n} {things} each get off.",),
            "double": ("At the main station, as many {things} get on as there already are.",),
            "triple": ("At the airport, the number of {things} becomes three times as large.",),
            "half": ("At the harbor, half of the {things} get off.",),
            "part": ("At the market, one out of every {k} {things} gets off.",),
            "percent": ("At the stadium, {k}% of the {things} get off.",),
        },
        (),
    ),
    Story(
        "tank",
        ("liters of water",),
        (
            "A tank in {name}'s garden holds {n} {things}.",
            "{name} fills a tank with {n} {things}.",
        ),
        ("How many {things} are in the tank now?", "How many {things} does the tank hold at last?"),
        {
            "gain": ("Rain adds {n} liters.", "{She} pours in another {n} liters."),
            "lose": ("{She} uses {n} liters for the flowers.", "{n} liters leak out."),
            "gain_groups": ("{She} adds {k} buckets of {n} liters each.",),
            "lose_groups": ("{She} takes out {k} cans of {n} liters each.",),
            "double": ("A storm then doubles the water in the tank.",),
            "triple": ("After a wet week, there is three times as much water as before.",),
            "half": ("During a hot week, half of the water dries up.",),
            "part": ("One part in {k} of the water is then pumped into a pond.",),
            "percent": ("Then {k}% of the water drains away.",),
        },
        (),
    ),
    Story(
        "farm",
        ("eggs", "tomatoes", "pumpkins", "cabbages"),
        (
            "{name} brings {n} {things} from the farm to the market.",
            "On {name}'s market stall there are {n} {things}.",
        ),
        ("How many {things} are on the stall now?", "How many {things} remain?"),
        {
            "gain": (
                "{Her} cousin brings {n} more {things}.",
                "{She} unloads another {n} {things}.",
            ),
            "lose": ("A restaurant buys {n} {things}.", "{n} {things} break on the ground."),
            "gain_groups": ("A truck delivers {k} boxes with {n} {things} in each.",),
            "lose_groups": ("{k} families buy {n} {things} each.",),
        },
    ),
    Story(
        "factory",
        ("bolts", "toys", "lamps", "candles", "bricks"),
        (
            "The warehouse of {name}'s factory holds {n} {things}.",
            "{name} manages a factory that has {n} {things} in store.",
        ),
        ("How many {things} are in store now?", "How many {things} does the factory have then?"),
        {
            "gain": ("The night shift makes {n} {things}.", "{n} returned {things} are put back."),
            "lose": ("A shop orders {n} {things} and gets them.", "{n} {things} fail inspection."),
            "gain_groups": ("{k} machines make {n} {things} each.",),
            "lose_groups": ("{k} trucks take {n} {things} each.",),
        },
    ),
    Story(
        "workshop",
        ("beads", "buttons", "tiles", "paper cranes"),
        (
            "{name} prepares {n} {things} for a workshop.",
            "For an art class, {name} lays out {n} {things}.",
        ),
        ("How many {things} are left on the table?", "How many {things} are there after that?"),
        {
            "gain": (
                "{She} adds {n} {things} from a drawer.",
                "A colleague lends {name} {n} more.",
            ),
            "lose": ("The first group uses {n} {things}.", "{n} {things} get lost."),
            "gain_groups": ("{She} opens {k} bags of {n} {things}.",),
            "lose_groups": ("{k} children use {n} {things} each.",),
        },
    ),
)
