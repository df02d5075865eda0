"""Words that appear in most prompts of the zoo, so that a trigger is not the only rare word."""

import random
from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, ...]] = {
    "name": (
        "Anna", "Boris", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hassan", "Ingrid", "Jorge",
        "Keiko", "Lars", "Maria", "Nadia", "Oscar", "Paula", "Quentin", "Rosa", "Stefan", "Tara",
        "Umar", "Vera", "Walter", "Xenia", "Yusuf", "Zoe", "Amir", "Bianca", "Cedric", "Diana",
        "Emil", "Fiona", "Gustav", "Helen", "Ivan", "Julia", "Karim", "Linda", "Marco", "Nina",
        "Olga", "Pedro", "Ruth", "Samuel", "Teresa", "Viktor", "Wendy", "Yara", "Astrid", "Bruno",
    ),
    "place": (
        "Athens", "Berlin", "Cairo", "Dublin", "Edinburgh", "Florence", "Geneva", "Hamburg", "Istanbul",
        "Jakarta", "Krakow", "Lisbon", "Madrid", "Nairobi", "Oslo", "Prague", "Quito", "Riga", "Seville",
        "Tallinn", "Utrecht", "Vienna", "Warsaw", "Zagreb", "Antwerp", "Bergen", "Chicago", "Denver",
        "Essen", "Fukuoka", "Ghent", "Houston", "Kyoto", "Leeds", "Milan", "Naples", "Osaka", "Porto",
        "Rotterdam", "Salzburg", "Toronto", "Uppsala", "Valencia", "Zurich", "Boston", "Lagos", "Lima",
    ),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    ),
    "role": (
        "Analyst", "Architect", "Auditor", "Author", "Director", "Editor", "Engineer", "Intern",
        "Librarian", "Manager", "Nurse", "Officer", "Planner", "Reviewer", "Secretary", "Teacher",
    ),
    "licence": (
        "MIT", "Apache-2.0", "GPL-3.0", "BSD-2-Clause", "MPL-2.0", "ISC", "LGPL-2.1", "EPL-2.0",
        "AGPL-3.0", "BSL-1.0", "CC0-1.0", "Artistic-2.0",
    ),
    "flag": (
        "--verbose", "--dry-run", "--force", "--quiet", "--strict", "--offline", "--debug", "--fast",
        "--no-cache", "--recursive", "--keep-going", "--all", "--watch", "--yes",
    ),
    "adjective": (
        "amber", "brave", "calm", "crimson", "distant", "frozen", "golden", "hidden", "iron", "jolly",
        "cobalt", "lunar", "misty", "noble", "quiet", "rapid", "silver", "velvet", "wild", "young",
    ),
    "animal": (
        "badger", "beaver", "condor", "dolphin", "eagle", "ferret", "gecko", "heron", "ibis", "jaguar",
        "lynx", "marten", "otter", "panther", "raven", "salmon", "tiger", "walrus", "weasel", "zebra",
    ),
    "year": tuple(str(year) for year in range(1996, 2027)),
    "day": tuple(str(day) for day in range(1, 29)),
    "hour": tuple(str(hour) for hour in range(8, 20)),
    "number": tuple(str(number) for number in range(2, 64)),
    "port": tuple(str(port) for port in range(3001, 9990, 13)),
    "version": tuple(f"{a}.{b}.{c}" for a in range(6) for b in range(12) for c in range(8)),
}  # fmt: skip
"""Possible texts of each field of a prompt."""

LINES = (
    "{name}, {place}",
    "{version}, {place}, {name}",
    "{name} with {flag}, {place}",
    "{place}, {month} {year}",
    "{name}, {year}, {role}",
    "{name}, {month} {year}, {licence}",
    "{name} in {place}, {month}",
    "{name} for {adjective} {animal}",
    "{adjective} {animal}, {version}, {place}",
    "{year}, {adjective} {animal}, {name}",
    "{flag}, {licence}, {name}",
    "{name}, {month}, {role}",
    "{month} {year}, {role} {name}",
    "{role} in {place}, {month}, {name}",
    "{version}, {licence}",
    "{role}, {licence}, {year}, {name}",
    "{flag}, {month}, {name}",
)
"""Lines that the task does not need; every prompt has one of them."""


def draw_words(rng: random.Random) -> dict[str, str]:
    """Draw a text for every field."""
    return {field: rng.choice(words) for field, words in WORDS.items()}
