"""Neuronpedia's own client, with a timeout and one kind of error, and what its server accepts.

Source of the latter: the `neuronpedia` client 1.2 and the schemas of the site's routes
(github.com/hijohnnylin/neuronpedia, `apps/webapp/app/api`).
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

from diffsae_lens._checks import check_count, check_number
from diffsae_lens._display import cut, one_line
from diffsae_lens._errors import FailedRunError, InvalidValueError
from diffsae_lens._hosts import bind_requests
from diffsae_lens._typed import check_fields
from diffsae_lens.reading._evidence import FeatureEvidence

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class NeuronpediaTarget:
    """Where to send features on Neuronpedia: the source `<layer>-<source_set>` of a model."""

    model_id: str
    """Neuronpedia's id of the fine-tuned model."""
    source_set: str
    """Created if it does not exist; must be yours if it does."""
    n_layers: int | None = None
    """The model's number of layers, to create it if Neuronpedia lacks it; None if it does not."""
    description: str = "Model diffing with diffsae-lens"
    vectors: bool = False
    """Whether to send decoder rows as steering vectors too; a model created here accepts none."""
    server: str = "https://www.neuronpedia.org/api"
    timeout: float = 60.0
    """Seconds to wait for the server's answer."""

    def __post_init__(self) -> None:
        """Refuse values that the server would refuse."""
        check_fields(self)
        for name in ("model_id", "source_set"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise InvalidValueError(
                    f"`{name}` must be of small letters and digits, with single hyphens between them, "
                    f"got {getattr(self, name)!r}"
                )
        if self.n_layers is not None:
            check_count("n_layers", self.n_layers, at_most=127)
        if not 1 <= len(self.description) <= 128:
            raise InvalidValueError(
                f"`description` must have 1 to 128 characters, got {len(self.description)}"
            )
        if not self.server.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise InvalidValueError(
                f"`server` must begin with https://, as your key goes there, got {self.server!r}"
            )
        check_number("timeout", self.timeout, low=0, low_open=True)


class Client:
    """The `neuronpedia` client with a timeout, no output and one kind of error."""

    def __init__(self, target: NeuronpediaTarget, api_key: str | None) -> None:
        self.target, self.api_key = target, api_key

    def ask(self, kind: str, call: Callable[[Any], T]) -> T:
        import neuronpedia
        from neuronpedia.requests import base_request as errors
        from requests import RequestException

        request = getattr(neuronpedia, kind)(api_key=self.api_key)
        bind_requests(request, self.target.server, self.target.timeout)
        try:
            with redirect_stdout(io.StringIO()):  # the client prints what it does
                return call(request)
        except (
            RequestException,
            errors.NPUnauthorizedError,
            errors.NPRateLimitError,
            errors.NPInvalidResponseError,
            KeyError,  # the client reads answers unchecked
            TypeError,
        ) as error:
            reason = one_line(cut(str(error).partition("\n")[0], 300))
            raise FailedRunError(
                f"{self.target.server} failed at {kind} ({type(error).__name__}): {reason}"
            ) from error

    def make_source(self, source: str) -> None:
        """Create the model and the source set if they do not exist."""
        model, name = self.target.model_id, self.target.source_set
        found = self.ask(
            "SourceSetRequest", lambda r: r.send_request(f"{model}/{name}", method="GET")
        )
        if found is None:
            if self.target.n_layers is not None:
                self._make_model(self.target.n_layers)
            made = self.ask(
                "SourceSetRequest", lambda r: r.new(name, model, self.target.description)
            )
            sources = {one.id for one in made.sources}
        else:
            sources = {one["id"] for one in found["sources"]}
        if source not in sources:
            raise FailedRunError(
                f"{self.target.server} has no source {source} in {model}, whose layers are too few"
            )

    def _make_model(self, n_layers: int) -> None:
        try:
            self.ask("ModelRequest", lambda r: r.new(self.target.model_id, n_layers))
        except FailedRunError as error:
            if "already exists" not in str(error):
                raise

    def has(self, source: str, index: int) -> bool:
        """Whether the server has a feature."""
        uri = f"{self.target.model_id}/{source}/{index}"
        try:
            self.ask("FeatureRequest", lambda r: r.send_request(uri, method="GET"))
        except FailedRunError as error:
            if "not found" not in str(error):
                raise
            return False
        return True

    def send(
        self, source: str, batch: Sequence[FeatureEvidence], labels: Mapping[str, str]
    ) -> None:
        """Send some features; the server accepts all of them or none."""
        from neuronpedia.np_activation import Activation
        from neuronpedia.np_explanation import Explanation
        from neuronpedia.np_feature import Feature

        payload = []
        for feature in batch:
            at = (self.target.model_id, source, feature.feature)
            label = labels.get(feature.id)
            texts = [
                Activation(*at, [t or "\ufffd" for t in e.tokens], list(e.activations))
                for e in feature.fires
            ]
            payload.append(
                Feature(
                    *at,
                    density=feature.frequency,
                    explanations=None if label is None else [Explanation(*at, label)],
                    activations=texts,
                )
            )
        self.ask("FeatureRequest", lambda r: r.upload_batch(self.target.model_id, source, payload))

    def send_vectors(
        self,
        source: str,
        layer: int,
        hook_type: str,
        vectors: Mapping[int, tuple[str, list[float]]],
    ) -> int:
        """Send the steering vectors whose names the server does not have; return how many."""
        if not vectors:
            return 0
        model = self.target.model_id
        owned = {
            vector.label.split(" ")[0]
            for vector in self.ask("VectorRequest", lambda r: r.get_owned())
        }
        names = {index: f"{model}/{source}/{index}" for index in vectors}
        left = [index for index in vectors if names[index] not in owned]
        for index in left:
            label, row = vectors[index]
            name = f"{names[index]} {label}".strip()
            self.ask("VectorRequest", lambda r: r.new(name, model, layer, hook_type, row))  # noqa: B023
        return len(left)
