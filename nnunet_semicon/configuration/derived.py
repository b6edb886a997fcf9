"""Values that follow from plans and data, each with its reason, and the settings that they fill."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from nnunet_semicon.configuration.config import Settings, keys_of, value_of

SET = "set in the plans"  # the reason of a value that the user chose

S = TypeVar("S", bound=Settings)


class Derived(NamedTuple):
    """A value and the reason for it, as printed and written to ``semicon_config.json``."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Filled(Generic[S]):
    """Settings in which open values are filled.

    Attributes:
        config: the settings.
        reasons: key -> reason of what was filled.
    """

    config: S
    reasons: Mapping[str, str] = field(default_factory=dict)

    def fill(self, **values: Derived) -> "Filled[S]":
        """Fill the open fields that the user did not set.

        Args:
            values: field name -> value and reason.
        """
        return self.replace(**{name: own for name, own in values.items() if getattr(self.config, name) is None})

    def replace(self, **values: Derived) -> "Filled[S]":
        """Replace values, set or not, by what the data allows.

        Args:
            values: field name -> value and reason.
        """
        config = self.config.model_copy(update={name: derived.value for name, derived in values.items()})
        reasons = {name.rstrip("_"): derived.reason for name, derived in values.items()}
        return Filled(config, {**self.reasons, **reasons})

    def then(self, later: "Filled[S]") -> "Filled[S]":
        """Return what another rule filled in these settings, with the reasons of both."""
        return Filled(later.config, {**self.reasons, **later.reasons})


def settings_of(config: Settings) -> dict[str, Any]:
    """Return key -> value."""
    return {key: value_of(config, key) for key in keys_of(type(config))}
