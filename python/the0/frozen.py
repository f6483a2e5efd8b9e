"""Frozen dataclasses for what a bot's start loads: `from the0.frozen import dataclass, field, replace`.

They behave as those of `dataclasses`, which takes 0.3 ms to make one class and loads `inspect` for 4 ms: with the 40 classes
that are loaded before a bot runs, a fifth of all that a start may cost. Here only `__init__` is compiled for each class; all else
is shared. Type checkers see the standard ones, and `dataclasses.fields`, `replace` and `asdict` take these, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:

    class _Field:
        __slots__ = ("default", "default_factory", "shown")

        def __init__(self, default, default_factory, shown):
            self.default = default
            self.default_factory = default_factory
            self.shown = shown

    class _Missing:
        """No default; in a call of `__init__`: the default is to be made by its factory."""

    _MISSING = _Missing()

    def field(*, default=_MISSING, default_factory=None, repr=True):  # noqa: A002 - as `dataclasses` names it
        return _Field(default, default_factory, repr)

    def replace(value, /, **changes):
        """The same value with some fields changed."""
        return type(value)(**{name: getattr(value, name) for name in value.__slots__} | changes)

    def dataclass(*, frozen, slots, kw_only=False):
        """Fields are the annotations of the class itself, which has no base. Only frozen ones with slots are made."""
        if not (frozen and slots):
            raise TypeError("the0.frozen makes frozen dataclasses with slots; take `dataclasses` for others")
        return lambda cls: _made(cls, kw_only=kw_only)

    def _made(cls, *, kw_only):
        if cls.__bases__ != (object,):
            raise TypeError(f"{cls.__name__} has a base class: take `dataclasses` for it")
        names = tuple(cls.__annotations__)
        given = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        fields = {name: _as_field(given.pop(name, _MISSING)) for name in names}
        members = {
            **_SHARED,
            **given,
            "__qualname__": cls.__qualname__,
            "__slots__": names,
            "__match_args__": () if kw_only else names,
            "__init__": _init(fields, kw_only=kw_only, of=cls),
            "__dataclass_fields__": _StandardFields(fields, kw_only=kw_only),
        }
        return type(cls.__name__, (), members)

    def _as_field(value):
        return value if isinstance(value, _Field) else _Field(value, None, True)

    def _init(fields, *, kw_only, of):
        known = {"_set": object.__setattr__, "_MISSING": _MISSING, "__name__": of.__module__}
        parameters, lines = [], []
        for name, each in fields.items():
            value = name
            if each.default_factory is not None:
                known[f"_make_{name}"] = each.default_factory
                value = f"_make_{name}() if {name} is _MISSING else {name}"
            if each.default is _MISSING and each.default_factory is None:
                parameters.append(name)
            else:
                known[f"_default_{name}"] = each.default
                parameters.append(f"{name}=_default_{name}")
            lines.append(f" _set(self, {name!r}, {value})")
        star = ["*"] if kw_only and parameters else []
        head = f"def __init__({', '.join(['self', *star, *parameters])}):"
        exec("\n".join([head, *(lines or [" pass"])]), known)
        known["__init__"].__qualname__ = f"{of.__qualname__}.__init__"
        return known["__init__"]

    def _values(value):
        return tuple([getattr(value, name) for name in value.__slots__])

    def _repr(self):
        kinds = type(self).__dict__["__dataclass_fields__"].fields
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__ if kinds[name].shown)
        return f"{type(self).__qualname__}({shown})"

    def _eq(self, other):
        return _values(self) == _values(other) if type(other) is type(self) else NotImplemented

    def _hash(self):
        return hash(_values(self))

    def _refuse_to_set(_self, name, _value):
        raise _frozen_error(f"cannot assign to field {name!r}")

    def _refuse_to_delete(_self, name):
        raise _frozen_error(f"cannot delete field {name!r}")

    def _frozen_error(sentence):
        from dataclasses import FrozenInstanceError

        return FrozenInstanceError(sentence)

    def _reduce(self):
        return _restored, (type(self), _values(self))

    def _restored(cls, values):
        return cls(**dict(zip(cls.__slots__, values, strict=True)))

    _SHARED = {
        "__repr__": _repr,
        "__eq__": _eq,
        "__hash__": _hash,
        "__setattr__": _refuse_to_set,
        "__delattr__": _refuse_to_delete,
        "__reduce__": _reduce,
    }

    class _StandardFields:
        """What `dataclasses` knows its own classes by, made from its own when somebody asks."""

        def __init__(self, fields, *, kw_only):
            self.fields = fields
            self._kw_only = kw_only

        def __get__(self, _, cls):
            import dataclasses

            def standard(each):
                if each.default_factory is not None:
                    return dataclasses.field(default_factory=each.default_factory, repr=each.shown)
                return dataclasses.field(
                    default=dataclasses.MISSING if each.default is _MISSING else each.default, repr=each.shown
                )

            twin = dataclasses.make_dataclass(
                cls.__name__,
                [(name, cls.__annotations__[name], standard(each)) for name, each in self.fields.items()],
                frozen=True,
                kw_only=self._kw_only,
            )
            return twin.__dataclass_fields__
