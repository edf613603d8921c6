"""The studies on the embedded base."""

from types import ModuleType

import toyland
from tara.families.loading import load_base
from tara.training.settings import TrainSettings, train_settings


def test_the_studies_train_as_tara_train_does_by_default(benchmark: ModuleType):
    # the figures of the README are then those of its commands
    defaults = load_base(toyland.BASE, device="cpu").defaults
    unset = TrainSettings(base=str(toyland.BASE)).with_defaults(defaults).model_dump(exclude={"resolution"})
    assert train_settings(**benchmark.SETTINGS).model_dump(exclude={"resolution"}) == unset
