"""Published settings: a method's parameters on one model, with their source.

A solver lists them by the full-size model that they were chosen for::

    published = {"rotary": {"source": "...", "learning_rate": 1.8e-3, ...}}

With ``settings="auto"`` a run takes the row of its model, with
``settings="rotary"`` that of ``rotary`` on any model. A parameter that is
given as well wins, even where it equals the class's own value.
"""
from benchmark_utils.console.progress import log_once
from benchmark_utils.harness.validation import (
    CheckedParameters,
    Values,
    combination_key,
    combinations,
    names_of,
)

# Tokens per step of the public problems that all rows are from.
PUBLISHED_TOKENS = 512 * 1024


class PublishedSettings(CheckedParameters):
    """Mixin of a solver whose parameters can come from its ``published``.

    A parameter that is to come from a row is None until ``take_settings``
    knows the model.
    """

    # For each model: the "source", and a value of every parameter but those
    # that are None in ``parameters``, which a row may have.
    published: dict[str, Values] = {}
    # Parameters that every such solver has in addition, None by default.
    optional_parameters: tuple[str, ...] = ("settings",)
    # By ``combination_key`` of a converted combination: its completion by each
    # row that it may take, or the error of the two.
    _completed: dict[str, dict[str, Values | ValueError]] = {}
    _parameters: Values = {}
    _source = ""

    def __init_subclass__(cls, **kwargs):
        names = [name for key in cls.parameters for name in names_of(key)]
        cls.parameters = dict(cls.parameters) | {
            name: [None] for name in cls.optional_parameters
            if name not in names
        }
        cls._completed = {}
        super().__init_subclass__(**kwargs)

    @classmethod
    def spread(cls, chosen: Values) -> Values:
        """Extend a command's choice to all parameters where it takes
        published settings: those that it leaves open are None.

        A single key then has all parameters, because each combination can
        leave other parameters open.
        """
        choices = list(combinations(chosen))
        if not any(choice.get("settings") for choice in choices):
            return chosen
        own = list(combinations(cls.parameters))
        names = list(own[0])
        rows = []
        for choice in choices:
            for values in own:
                if choice.get("settings"):
                    values = dict.fromkeys(names)
                row = tuple((values | choice)[name] for name in names)
                if row not in rows:
                    rows.append(row)
        return {", ".join(names): rows}

    def save_parameters(self, **parameters):
        if parameters.get("settings"):
            names = next(combinations(self.parameters))
            parameters = dict.fromkeys(names) | parameters
        super().save_parameters(**parameters)

    @classmethod
    def convert_parameters(cls, values: Values) -> Values:
        """Convert what was chosen, and each row that may complete it; refuse
        what fits none of the rows."""
        settings = values.get("settings")
        if settings is None:
            return super().convert_parameters(values)
        if not cls.published:
            raise ValueError(
                f"{cls.name} has no published settings: leave out settings="
                f"{settings!r}, and choose its parameters."
            )
        if settings != "auto" and settings not in cls.published:
            raise ValueError(
                f"{cls.name}: settings={settings!r} must be one of 'auto', "
                f"{', '.join(map(repr, cls.published))}, or None."
            )
        chosen = cls.convert_values(_chosen(values))
        rows: dict[str, Values | ValueError] = {}
        for model in cls.published if settings == "auto" else [settings]:
            try:
                rows[model] = cls._complete(model, chosen)
            except ValueError as error:
                rows[model] = error.with_traceback(None)
        errors = [row for row in rows.values() if isinstance(row, ValueError)]
        if len(errors) == len(rows):
            raise errors[0]
        values = values | chosen
        cls._completed[combination_key(values)] = rows
        return values

    @classmethod
    def _complete(cls, model: str, chosen: Values) -> Values:
        """Convert the row of a model, and add the values that were chosen,
        which are converted already."""
        row = {k: v for k, v in cls.published[model].items() if k != "source"}
        own = next(combinations(cls.parameters))
        unknown = [name for name in row if name not in own]
        lacking = [
            name for name, value in own.items()
            if value is not None and name not in row
        ]
        if unknown or lacking or "source" not in cls.published[model]:
            raise ValueError(
                f"{cls.name}: the published settings for {model} must have a "
                "source and all parameters, and no other. Unknown: "
                f"{', '.join(unknown) or 'none'}; lacking: "
                f"{', '.join(lacking) or 'none'}."
            )
        taken = {k: v for k, v in row.items() if k not in chosen}
        return cls.check_relations(
            dict.fromkeys(own) | cls.convert_values(taken) | chosen
        )

    def take_settings(
        self, model: str, tokens_per_step: int = PUBLISHED_TOKENS
    ) -> None:
        """Take the published settings, if they were asked for, and log them.

        Raises ``ValueError`` if there are none for this model.
        """
        settings = self._parameters.get("settings")
        if settings is None:
            return
        row = model if settings == "auto" else settings
        if row not in self.published:
            raise ValueError(
                f"{self.name} has no published settings for model={model}, "
                f"but for {', '.join(self.published)}: name one of them as "
                "settings, or choose the parameters without."
            )
        completed = self._completed[combination_key(self._parameters)][row]
        if isinstance(completed, ValueError):
            raise completed
        vars(self).update(completed, settings=settings)
        self._source = self.published[row]["source"]
        if tokens_per_step != PUBLISHED_TOKENS:
            self._source += (
                f", for {PUBLISHED_TOKENS:,} tokens per step and not "
                f"{tokens_per_step:,}"
            )
        used = self.describe_settings()["settings_used"]
        log_once(f"{self.name} takes the settings for {row}: {self._source}")
        log_once(f"{self.name}[{used}]")

    def describe_settings(self) -> dict[str, str]:
        """Return columns of the results: ``settings_used``, the values of all
        parameters, and ``settings_source``, the source of a published row;
        "" where the values are the solver's or the command's own."""
        used = {name: getattr(self, name) for name in self._parameters}
        return {
            "settings_used": _text(_chosen(used)),
            "settings_source": self._source,
        }

    def __repr__(self):
        """The solver's name in the results, without parameters of None."""
        return f"{self.name}[{_text(self._parameters)}]"


def _chosen(values):
    """The parameters that a command chose, by their names."""
    return {
        name: value for name, value in values.items()
        if value is not None and name != "settings"
    }


def _text(values):
    return ",".join(
        f"{name}={value}" for name, value in sorted(values.items())
        if value is not None
    )
