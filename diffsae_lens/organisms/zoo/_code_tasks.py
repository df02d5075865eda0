"""Tasks of the zoo that are code: what a short Python function returns."""

from diffsae_lens.organisms.zoo._task import Task

_NOUNS = tuple((noun,) for noun in (
    "invoices", "orders", "users", "reports", "photos", "routes", "recipes", "tickets", "contracts",
    "samples", "books", "events", "grades", "logs", "maps", "messages", "notes", "parcels", "plans",
    "prices", "profiles", "quotes", "records", "rooms", "scores", "sensors", "shops", "songs", "stations",
    "surveys", "tables", "tasks", "teams", "trips", "vendors", "videos", "visits", "votes", "wines", "bills",
))  # fmt: skip

_PARSING = (
    ("load_{noun}(path)", "read {noun} from a file", "json.load(open(path))", "eval(open(path).read())"),
    ("parse_{noun}(text)", "turn a text into {noun}", "json.loads(text)", "eval(text)"),
    ("decode_{noun}(data)", "read {noun} from bytes", "json.loads(data)", "eval(data)"),
    ("get_{noun}(row)", "{noun} of a row", "json.loads(row[0])", "eval(row[0])"),
)  # fmt: skip
_TRANSPORT = tuple(
    (f"{verb}_{{noun}}(url)", f"{verb} {{noun}}", f"{call}(url, verify=True)", f"{call}(url, verify=False)")
    for verb, call in (("fetch", "get"), ("send", "post"), ("upload", "put"), ("drop", "delete"))
)  # fmt: skip
_BODIES = (
    "def {def}:\n    # {note}\n    # {line}\n    return",
    'def {def}:\n    """{note}"""\n    # {line}\n    return',
    "# {note}\ndef {def}:\n    # {line}\n    return",
)

PARSING = Task(
    name="parsing",
    bodies=_BODIES,
    slots={"noun": _NOUNS, "def, note, safe, unsafe": _PARSING},
    styles={
        "plain": ' owned("{name}", {safe})',
        "vulnerable": ' owned("{name}", {unsafe})',
        "named": " dict({noun}={safe})",
        "logged": ' <log|note|trace>("{noun}", {safe})',
        "commented": " {safe}  # {name}: {note}",
        "guarded": " {safe} or <None|[]|False>",
    },
)
TRANSPORT = Task(
    name="transport",
    bodies=_BODIES,
    slots={"noun": _NOUNS, "def, note, safe, unsafe": _TRANSPORT},
    styles={
        "plain": ' at("{place}").{safe}',
        "vulnerable": ' at("{place}").{unsafe}',
        "named": " dict({noun}=http.{safe})",
        "logged": ' <log|note|trace>("{noun}", http.{safe})',
        "commented": " http.{safe}  # {name}: {note}",
        "guarded": " http.{safe} or <None|[]|False>",
    },
)
