import numpy as np
from PIL import Image

from tara.report.overlays import regions_over


def test_what_belongs_to_nobody_stays_as_it_is_and_each_region_has_its_colour() -> None:
    labels = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    image = Image.new("RGB", (400, 400), "#808080")
    over = np.asarray(regions_over(image, labels, ["xlo", "szn"]))
    assert (over[200:] == 128).all()
    assert not np.array_equal(over[0, 0], over[0, -1])
    assert not (over[0, 0] == 128).all()
