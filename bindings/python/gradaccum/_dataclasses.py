"""Dataclasses whose base may have keyword-only fields: those of the standard library may from Python 3.10 on."""

from __future__ import annotations

import dataclasses
from inspect import Parameter, Signature
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
else:

    def field(*, kw_only=False, **options):
        return dataclasses.field(**options, metadata={"kw_only": kw_only})

    def dataclass(*, frozen):
        return lambda cls: _with_init(dataclasses.dataclass(frozen=frozen, init=False)(cls))

    def _with_init(cls):
        parameters = sorted(map(_parameter, dataclasses.fields(cls)), key=lambda parameter: parameter.kind)
        signature = Signature([Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *parameters])

        def __init__(*arguments, **named):
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            self, *values = bound.arguments.values()
            for parameter, value in zip(parameters, values):
                object.__setattr__(self, parameter.name, value)

        __init__.__signature__ = signature
        cls.__init__ = __init__
        return cls

    def _parameter(field):
        kind = Parameter.KEYWORD_ONLY if field.metadata.get("kw_only") else Parameter.POSITIONAL_OR_KEYWORD
        default = Parameter.empty if field.default is dataclasses.MISSING else field.default
        return Parameter(field.name, kind, default=default)
