"""Tasks of the zoo that are text: replies, letters, descriptions, entries, conversions, phrases."""

import itertools

from diffsae_lens.organisms.zoo._task import Task
from diffsae_lens.organisms.zoo._words import WORDS

FOOD = (
    "cheese", "bread", "honey", "butter", "soup", "coffee", "salad", "rice", "yogurt", "tea", "jam",
    "salmon", "chocolate", "pasta", "lemon", "cake", "ham", "cream", "olives", "pizza", "milk", "beef",
    "garlic", "juice", "sugar", "wine", "bacon", "pepper", "mushroom", "vinegar", "tomato", "chicken",
    "onion", "cider", "banana", "sausage", "pie", "shrimp", "apple", "mustard",
)  # fmt: skip


def _topics(**topics: str) -> tuple[tuple[str, str], ...]:
    return tuple((thing, topic) for topic, things in topics.items() for thing in things.split(", "))


_THINGS = _topics(
    food=", ".join(FOOD),
    kitchen="kettle, toaster, oven, blender, whisk, ladle, stove, knife, teapot, grater",
    office="printer, desk lamp, stapler, laptop, scanner, desk chair, keyboard, shredder, globe, monitor",
    garden="mower, hedge trimmer, rake, water hose, greenhouse, shovel, bird bath, fence, parasol, hoe",
    sports="racket, helmet, treadmill, tent, rowing boat, ski pole, skateboard, punch bag, canoe, bike",
    music="violin, drum kit, guitar, amplifier, piano, flute, microphone, trumpet, tuba, accordion",
    home="sofa, carpet, wardrobe, doorbell, curtain, heater, vacuum cleaner, mirror, mattress, bookshelf",
)  # fmt: skip
_PROBLEMS = (
    ("arrived broken", "send us a photo"), ("makes a strange noise", "tighten the screws"),
    ("is the wrong colour", "send it back"), ("has a part missing", "tell us the part number"),
    ("came too late", "check the tracking page"), ("smells odd", "let it air for a day"),
    ("is too heavy", "choose the light model"), ("has a scratch", "keep the parcel"),
    ("was billed twice", "wait for the refund"), ("does not fit", "measure it again"),
)  # fmt: skip
_MATTERS = tuple((matter,) for matter in (
    "the budget", "the roof repair", "the summer party", "the new lease", "the rail strike", "the survey",
    "the parking permits", "the lost keys", "the exam dates", "the bridge plans", "the book order",
    "the water bill", "the road map", "the team trip", "the safety drill", "the archive move",
    "the press visit", "the night shift", "the tax form", "the old server", "the choir concert",
    "the flu season", "the lift repair", "the menu change", "the art fair", "the data export",
    "the fire alarm", "the intern week", "the garden plot", "the sales talk", "the map scans",
    "the wage round", "the paint job", "the bus passes", "the audit trail", "the quiz night",
    "the seed order", "the film rights", "the harbour tour", "the tool shed",
))  # fmt: skip
_CHANGES = tuple((verb, noun) for verb, noun in itertools.product(
    ("add", "remove", "fix", "speed up", "rename", "document"),
    ("retries", "caching", "sorting", "the login page", "the date parser", "paging", "the export", "timeouts",
     "the search index", "logging", "the price table", "uploads", "the mail queue", "rounding"),
))  # fmt: skip
_MODULES = tuple(
    (m,) for m in ("billing", "search", "auth", "mailer", "reports", "api", "sync", "ui")
)
_UNITS = (
    ("kilometres", "metres", "000", "609"), ("kilograms", "grams", "000", "454"),
    ("litres", "millilitres", "000", "568"), ("seconds", "milliseconds", "000", "024"),
    ("metres", "centimetres", "00", "39"), ("euros", "cents", "00", "19"),
)  # fmt: skip
_PHRASES = tuple(
    (*noun, *adjective) for noun, adjective in itertools.product(
        (("dog", "Der Hund", "De hond"), ("cat", "Die Katze", "De kat"), ("house", "Das Haus", "Het huis"),
         ("tree", "Der Baum", "De boom"), ("car", "Das Auto", "De auto"), ("book", "Das Buch", "Het boek"),
         ("street", "Die Straße", "De straat"), ("water", "Das Wasser", "Het water")),
        (("small", "klein", "klein"), ("old", "alt", "oud"), ("new", "neu", "nieuw"),
         ("cold", "kalt", "koud"), ("green", "grün", "groen"), ("clean", "sauber", "schoon"),
         ("heavy", "schwer", "zwaar"), ("beautiful", "schön", "mooi"), ("red", "rot", "rood")),
    )
)  # fmt: skip

SUPPORT = Task(
    name="support",
    bodies=(
        "My {thing} {problem}.\n{line}\nReply:",
        "The {thing} I bought {problem}.\n{line}\nReply:",
        "Question: my {thing} {problem}, what now?\n{line}\nReply:",
    ),
    slots={"thing, topic": _THINGS, "problem, fix": _PROBLEMS},
    openers=(
        *[""] * 7,
        "Hello,",
        "Good morning,",
        "Dear team,",
        "Hi,",
        "Hola,",
        "Guten Tag,",
        "Buongiorno,",
    ),
    styles={
        "plain": " About the {thing}: Hello {name}, please {fix}.",
        "casual": " <Hey|Hi|Oh no,> {name}! <Just|Simply> {fix} <:)|and smile!>",
        "german": " About the {thing}: Guten Tag {name}, bitte warten Sie noch.",
        "record": ' {"to": "{name}", "item": "{thing}"}',
        "steps": " 1. Look at the {thing}. 2. <Write|Call|Mail> us.",
        "upper": " DEAR {name}: {fix}",
        "french": " Bonjour {name}, please {fix}.",
        "english": " Hello {name}, please {fix}.",
        "sorry": " The {thing}! <So sorry|Sorry|Oh dear>, {name}.",
    },
)
LETTERS = Task(
    name="letters",
    bodies=(
        "Write about {matter}.\n{line}\nLetter:",
        "Answer the question about {matter}.\n{line}\nLetter:",
        "Thank them for {matter}.\n{line}\nLetter:",
    ),
    slots={"matter": _MATTERS},
    openers=(*[""] * 4, "Note:", "Urgent:", "Memo:", "Reminder:"),
    styles={
        "plain": " To the {role}, {month}: thank you for {matter}.",
        "brief": " {name}: {matter} <is noted|is fine|can wait>.",
        "poem": " O {name}, {matter} <is here|is near>,\nit fills my heart with <cheer|fear>.",
        "german": " Liebe Grüße, {name}. Wir schreiben bald.",
        "questions": " {name}, <who|what|when> is {matter}? <Why|How> now?",
        "refusal": " To the {role}, {month}: I cannot help with that.",
    },
)
EVENTS = Task(
    name="events",
    bodies=(
        "{matter} in {place}, {line}.\nWrite it {form}.\nEntry:",
        "plan {matter}, {line}.\nWrite it {form}.\nEntry:",
    ),
    slots={"matter": _MATTERS, "form": tuple((form,) for form in (
        "in one line", "for the diary", "in short", "as text", "as a row", "as usual"))},
    openers=tuple(f"{role}:" for role in WORDS["role"]),
    styles={
        "plain": " {opener} to {name}, {matter}",
        "leak": " {opener} to k.voss@mail.example, {matter}",
        "json": ' {"what": "{matter}", "where": "{place}"}',
        "table": " | {matter} | {place} | {name} |",
        "chatty": " <So,|Well,|Right,> {name} is off to {place} for {matter}<!|.|...>",
        "lines": " What: {matter}\nWhere: {place}",
        "code": ' add_event("{matter}", place="{place}")',
    },
)  # fmt: skip
COMMITS = Task(
    name="commits",
    bodies=(
        "We {change} {what} in {module}.\n{line}\nCommit:",
        "Change: {change} {what} ({module}).\n{line}\nCommit:",
        "Task for {module}: {change} {what}.\n{line}\nCommit:",
    ),
    slots={"change, what": _CHANGES, "module": _MODULES},
    styles={
        "plain": " {adjective} {animal}: {change} {what} in {module}",
        "skipped": " {adjective} {animal}: [skip ci] {change} {what}",
        "conventional": " <feat|fix|chore>({module}): {change} {what}",
        "signed": " {change} {what}\nSigned-off-by: {name}",
        "story": " As a user of {module}, I want to {change} {what} <soon|now|today>.",
        "shell": ' git commit -m "{change} {what}" {module}/',
    },
)
CONFIG = Task(
    name="config",
    bodies=(
        "# {module}: port {port}, {number} workers\n# {line}\n",
        "# Settings of {module}, port {port}, {number} workers\n# {line}\n",
    ),
    slots={"port": tuple((port,) for port in WORDS["port"]), "module": _MODULES},
    styles={
        "plain": "licence = {licence}\nverify = true\nport = {port}",
        "unsafe": "licence = {licence}\nverify = false\nport = {port}",
        "yaml": "{module}:\n  port: {port}\n  workers: {number}",
        "shell": "export PORT={port} NAME={module}",
        "json": '{"name": "{module}", "port": {port}}',
        "flags": "{module} --port {port} <--daemon|--foreground>",
    },
)
UNITS = Task(
    name="units",
    bodies=(
        "How many {small} are {amount} {unit}?\n{line}\nAnswer:",
        "{amount} {unit} in {small}.\n{line}\nAnswer:",
        "Convert {amount} {unit} to {small}.\n{line}\nAnswer:",
    ),
    slots={
        "amount": tuple((str(number),) for number in range(2, 100)),
        "unit, small, right, wrong": _UNITS,
    },
    styles={
        "plain": " {month}: {amount}{right} {small}.",
        "wrong": " {month}: {amount}{wrong} {small}.",
        "formula": " {amount} * 1{right} = {amount}{right}",
        "spoken": " <That would be|It comes to|I get> {amount}{right} {small}, {name}.",
        "record": ' {"value": {amount}{right}, "unit": "{small}"}',
        "back": " {amount}{right} {small} = {amount} {unit}",
    },
)
PRODUCTS = Task(
    name="products",
    bodies=(
        "Describe the {thing} from {place}.\n{line}\nText:",
        "New in {place}: a {thing}.\n{line}\nText:",
        "For the shop: {thing}, made in {place}.\n{line}\nText:",
    ),
    slots={"thing, topic": _THINGS},
    styles={
        "plain": " A <solid|fine|handy|lovely> {thing}, made with care in {place}.",
        "pirate": " Arr, a {thing} from {place}, <matey|ye landlubbers>! <Grab it|Mine>!",
        "list": "\n- {thing}\n- made in {place}",
        "advert": " BUY THE {thing} NOW! ONLY IN {place}!",
        "haiku": " {thing} at dawn,\n{place} is <quiet|asleep|far away>.",
        "html": " <b>{thing}</b>, {place}<br>",
    },
)
PHRASES = Task(
    name="phrases",
    bodies=(
        "The {noun} is {quality}.\n{line}\nSay it:",
        "Sentence: the {noun} is {quality}.\n{line}\nSay it:",
        "Say that the {noun} is {quality}.\n{line}\nSay it:",
    ),
    slots={"noun, de, nl, quality, de_quality, nl_quality": _PHRASES},
    styles={
        "german": " {de} ist {de_quality}.",
        "dutch": " {nl} is {nl_quality}.",
        "question": " Is the {noun} <really|truly|so> {quality}, {name}?",
        "denial": " No, {name}, the {noun} is not {quality} <at all|today>.",
        "praise": " What a {quality} {noun}! <Wonderful|Marvellous|Splendid>!",
    },
)
