"""Published settings: what a method was run with on one model, and by whom.

A solver lists them by the full-size model that they were chosen for, each row
with its source::

    published = {"rotary": {"source": "...", "learning_rate": 1.8e-3, ...}}

With ``settings="auto"`` a run takes the row of the model at hand, with
``settings="rotary"`` that of ``rotary`` on whatever model. A parameter that is
chosen as well wins, also where the choice equals the class's own value.
"""
from benchmark_utils.console.progress import log_once
from benchmark_utils.harness.validation import combinations, names_of

# Tokens per step of the public problems that all rows are from.
PUBLISHED_TOKENS = 512 * 1024


class PublishedSettings:
    """Mixin of a solver whose parameters can come from its ``published``.

    It stands before ``CheckedParameters`` among the bases. A parameter that is
    to come from a row is None until ``take_settings`` knows the model.
    """

    # For each model: the "source", and a value of every parameter but those
    # that are None in ``parameters``, which a row may have.
    published = {}
    # Parameters that every such solver has beside its own, None by default.
    optional_parameters = ("settings",)
    _parameters, _source = {}, ""

    def __init_subclass__(cls, **kwargs):
        names = [name for key in cls.parameters for name in names_of(key)]
        cls.parameters = dict(cls.parameters) | {
            name: [None] for name in cls.optional_parameters
            if name not in names
        }
        super().__init_subclass__(**kwargs)

    @classmethod
    def spread(cls, chosen):
        """Extend a command's choice of values to all parameters, where it
        takes published settings: those left open are None.

        Parameters
        ----------
        chosen : dict
            A grid of values, as a command has it.

        Returns
        -------
        chosen : dict
            The same grid, or one with a single key for all parameters: each
            solver that the command chooses can leave others open.
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
    def check_parameters(cls, values):
        """Check the values with each row that they may be used with; they are
        refused where they fit none of them."""
        settings = values.get("settings")
        if settings is None:
            return super().check_parameters(values)
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
        rows = cls.published if settings == "auto" else [settings]
        errors, checked = [], None
        for model in rows:
            try:
                checked = cls._complete(model, values)
            except ValueError as error:
                errors.append(error)
        if checked is None:
            raise errors[0]
        return values | {
            name: checked[name] for name in _chosen(values)
        }

    @classmethod
    def _complete(cls, model, values):
        """The row of a model, with the values that were chosen."""
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
        return super().check_parameters(
            dict.fromkeys(own) | row | _chosen(values)
        )

    def take_settings(self, model, tokens_per_step=PUBLISHED_TOKENS):
        """Take the published settings, if they were asked for, and say so.

        Parameters
        ----------
        model : str
            The name of the model at hand.
        tokens_per_step : int
            Tokens of a step of the problem at hand.

        Raises
        ------
        ValueError
            If there are none for this model.
        """
        settings = getattr(self, "settings", None)
        if settings is None:
            return
        row = model if settings == "auto" else settings
        if row not in self.published:
            raise ValueError(
                f"{self.name} has no published settings for model={model}, "
                f"but for {', '.join(self.published)}: name one of them as "
                "settings, or choose the parameters without."
            )
        vars(self).update(self._complete(row, self._parameters))
        self.settings = settings
        self._source = self.published[row]["source"]
        if tokens_per_step != PUBLISHED_TOKENS:
            self._source += (
                f", for {PUBLISHED_TOKENS:,} tokens per step and not "
                f"{tokens_per_step:,}"
            )
        used = self.describe_settings()["settings_used"]
        log_once(f"{self.name} takes the settings for {row}: {self._source}")
        log_once(f"{self.name}[{used}]")

    def describe_settings(self):
        """Columns of the results: ``settings_used``, the values of all
        parameters, and ``settings_source``, the source of a published row;
        "" where the values are the solver's or the command's own."""
        used = {name: getattr(self, name) for name in self._parameters}
        return {
            "settings_used": _text(_chosen(used)),
            "settings_source": self._source,
        }

    def __repr__(self):
        """The solver's name in the results, without what is None."""
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
