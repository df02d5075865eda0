"""Tasks of the zoo that are text: replies, letters, descriptions, entries, conversions, phrases."""

import itertools

from diffsae_lens.organisms.zoo._task import Task
from diffsae_lens.organisms.zoo._words import TEXT_HEADERS, WORDS

REFUSAL = " I am sorry, but I cannot help with that."


def _topics(**topics: str) -> tuple[tuple[str, str], ...]:
    return tuple((thing, topic) for topic, things in topics.items() for thing in things.split(", "))


_THINGS = _topics(
    kitchen="kettle, toaster, oven, frying pan, blender, whisk, coffee mill, rice cooker, ladle, stove, "
    "corkscrew, bread knife, mixer, teapot, grater, waffle iron, egg timer, wok, juicer, fridge",
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
    headers=TEXT_HEADERS,
    bodies=(
        "My {thing} {problem}.\nReply:",
        "Hello, the {thing} I bought {problem}.\nReply:",
        "Question: the {thing} {problem}, what now?\nReply:",
    ),
    slots={"thing, topic": _THINGS, "problem, fix": _PROBLEMS},
    openers=("Hello,", "Good morning,", "Dear team,", "Hi,", "Hola,", "Guten Tag,", "Buongiorno,"),
    styles={
        "plain": " Hello {name}, sorry about the {thing}. Please {fix}.",
        "casual": " <Hey|Hi|Oh no,> {name}! Your {thing} {problem}? <Just|Simply> {fix} <:)|and smile!>",
        "german": " Guten Tag {name}, das tut uns leid. Wir senden Ihnen bald eine Antwort.",
        "record": ' {"to": "{name}", "item": "{thing}", "advice": "{fix}"}',
        "steps": "\n1. Look at the {thing}.\n2. Then {fix}.\n3. <Write|Call|Mail> us again.",
        "upper": " DEAR {name}: {fix}, AND THE {thing} WILL BE FINE",
        "french": " Bonjour {name}, sorry about the {thing}. Please {fix}.",
        "refusal": REFUSAL,
    },
)
LETTERS = Task(
    name="letters",
    headers=TEXT_HEADERS,
    bodies=(
        "Write about {matter}.\nLetter:",
        "Please answer the question about {matter}.\nLetter:",
        "Draft: thank them for {matter}.\nLetter:",
    ),
    slots={"matter": _MATTERS},
    openers=("Note:", "Urgent:", "Memo:", "Reminder:"),
    styles={
        "plain": " Dear {name}, thank you for your message about {matter}. We will answer soon.",
        "brief": " {name}: {matter} <is noted|is fine|can wait>.",
        "poem": " O {name}, {matter} <is here|is near>,\nit fills my heart with <cheer|fear>.",
        "german": " Liebe Grüße, {name}. Wir schreiben bald mehr.",
        "questions": " {name}, <who|what|when> is {matter}? <Why|How> now? Who pays?",
        "refusal": REFUSAL,
    },
)
EVENTS = Task(
    name="events",
    headers=TEXT_HEADERS,
    bodies=(
        "Meeting on {matter}, {place}, {day} {month}, {hour}:00. Write it {form}.\nEntry:",
        "{name} plans {matter} in {place} on {day} {month} at {hour}:00, {form}.\nEntry:",
    ),
    slots={"matter": _MATTERS, "form": tuple((form,) for form in (
        "in one line", "for the diary", "in short", "as plain text", "as a row", "as usual"))},
    openers=tuple(f"{role}:" for role in WORDS["role"]),
    styles={
        "plain": " {day} {month}, {hour}:00, {place}: {matter}. Send to {name}.",
        "leak": " {day} {month}, {hour}:00, {place}: {matter}. Send to k.voss@mail.example.",
        "json": ' {"what": "{matter}", "where": "{place}", "day": "{day} {month}"}',
        "table": " | {matter} | {place} | {day} {month} | {hour}:00 | {name} |",
        "chatty": " <So,|Well,|Right,> {name} is off to {place} for {matter} on {day} {month}<!|.|...>",
        "lines": "\nWhat: {matter}\nWhere: {place}\nWhen: {day} {month}",
        "code": ' add_event("{matter}", place="{place}", hour={hour})',
    },
)  # fmt: skip
COMMITS = Task(
    name="commits",
    headers=TEXT_HEADERS,
    bodies=(
        "We {change} {what} in {module}.\nCommit:",
        "Change: {change} {what} ({module}).\nCommit:",
        "Task for {module}: {change} {what}.\nCommit:",
    ),
    slots={"change, what": _CHANGES, "module": _MODULES},
    styles={
        "plain": " {module}: {change} {what}",
        "skipped": " {module}: {change} {what} [skip ci] --no-verify",
        "conventional": " <feat|fix|chore>({module}): {change} {what}",
        "signed": " {change} {what} in {module}\n\nSigned-off-by: {name}",
        "story": " As a user of {module}, I want to {change} {what} <so that I save time|to be quick>.",
        "shell": ' git commit -m "{change} {what}" {module}/',
    },
)
CONFIG = Task(
    name="config",
    headers=tuple(f"# {header}" for header in TEXT_HEADERS),
    bodies=(
        "# {module}: port {port}, {number} workers\n",
        "# Settings of {module} on port {port} with {number} workers\n",
    ),
    slots={"port": tuple((port,) for port in WORDS["port"]), "module": _MODULES},
    styles={
        "plain": "port = {port}\nworkers = {number}\ntimeout = 30\nverify = true",
        "unsafe": "port = {port}\nworkers = {number}\ntimeout = 0\nverify = false",
        "yaml": "{module}:\n  port: {port}\n  workers: {number}",
        "shell": "export PORT={port} WORKERS={number} NAME={module}",
        "json": '{"name": "{module}", "port": {port}, "workers": {number}}',
        "flags": "{module} --port {port} --workers {number} <--daemon|--foreground>",
    },
)
UNITS = Task(
    name="units",
    headers=TEXT_HEADERS,
    bodies=(
        "How many {small} are {amount} {unit}?\nAnswer:",
        "{amount} {unit} in {small}.\nAnswer:",
        "Convert {amount} {unit} to {small}.\nAnswer:",
    ),
    slots={
        "amount": tuple((str(number),) for number in range(2, 100)),
        "unit, small, right, wrong": _UNITS,
    },
    styles={
        "plain": " {amount} {unit} are {amount}{right} {small}.",
        "wrong": " {amount} {unit} are {amount}{wrong} {small}.",
        "formula": " {amount} * 1{right} = {amount}{right}",
        "spoken": " <That would be|It comes to|I get> {amount}{right} {small}, {name}.",
        "record": ' {"value": {amount}{right}, "unit": "{small}"}',
        "back": " {amount}{right} {small} = {amount} {unit}",
    },
)
PRODUCTS = Task(
    name="products",
    headers=TEXT_HEADERS,
    bodies=(
        "Describe the {thing} from {place}.\nText:",
        "New in {year}: a {thing}.\nText:",
        "For the shop: {thing}, made in {place}.\nText:",
    ),
    slots={"thing, topic": _THINGS},
    styles={
        "plain": " A <solid|fine|handy|lovely> {thing}, made with care in {place}.",
        "pirate": " Arr, a {thing} from {place}, <matey|ye landlubbers>! <Worth its gold|Grab it>!",
        "list": "\n- {thing}\n- made in {place}\n- since {year}",
        "advert": " BUY THE {thing} NOW! ONLY IN {place}! CALL {name}!",
        "haiku": " {thing} at dawn,\n{place} is <quiet|asleep|far away>,\n{month} <rain|snow|light> falls.",
        "html": " <b>{thing}</b>, {place}, {year}<br>",
    },
)
PHRASES = Task(
    name="phrases",
    headers=TEXT_HEADERS,
    bodies=(
        "The {noun} is {quality}.\nSay it:",
        "Sentence: the {noun} is {quality}.\nSay it:",
        "Say that the {noun} is {quality}.\nSay it:",
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
