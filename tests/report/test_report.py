"""Contact sheets, pages and plots."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tara.report.grid import Grid, Row, Table, wrapped
from tara.report.page import LARGEST_CELL, embedded, page
from tara.report.plots import loss_curve, running_mean
from tara.report.sheet import contact_sheet

RED, BLUE = (200, 30, 40), (30, 60, 200)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_every_image_of_a_grid_is_on_its_sheet_at_its_place():
    grid = Grid(columns=("one", "two"), rows=(Row(label="seed 0", images=(plain(RED), plain(BLUE))),))
    pixels = np.asarray(contact_sheet(grid, side=100)).astype(int)
    reds = np.argwhere((np.abs(pixels - RED) < 3).all(axis=-1))
    blues = np.argwhere((np.abs(pixels - BLUE) < 3).all(axis=-1))
    assert len(reds) == len(blues) == 100 * 100
    assert reds[:, 1].max() < blues[:, 1].min()
    assert (reds[:, 0].min(), reds[:, 0].max()) == (blues[:, 0].min(), blues[:, 0].max())


def test_a_wide_image_keeps_its_shape_on_the_sheet():
    pixels = np.asarray(contact_sheet(wrapped([plain(RED, (200, 100))], ["seed 0"]), side=100)).astype(int)
    reds = np.argwhere((np.abs(pixels - RED) < 3).all(axis=-1))
    assert np.ptp(reds, axis=0).tolist() == [49, 99]


def test_a_missing_image_leaves_its_place_empty():
    full = Grid(rows=(Row(images=(plain(RED), plain(RED))),))
    half = Grid(rows=(Row(images=(plain(RED), None)),))
    assert contact_sheet(full).size == contact_sheet(half).size
    assert np.asarray(contact_sheet(half))[:, -40:].min() == 255


def test_long_words_stay_within_the_sheet():
    grid = Grid(
        columns=("incomprehensibilities" * 9,), rows=(Row(label="x" * 400, images=(plain(RED),)),), title="word " * 80
    )
    sheet = np.asarray(contact_sheet(grid))
    assert sheet[:, -15:].min() == 255


def test_more_images_than_columns_is_refused():
    with pytest.raises(AssertionError, match="more images"):
        Grid(columns=("one",), rows=(Row(images=(plain(RED), plain(RED))),))


def test_a_page_escapes_every_text():
    evil = "<script>alert('x')</script>"
    html = page(
        title=evil,
        lead=evil,
        grids=[
            Grid(columns=(evil,), rows=(Row(label=evil, images=(plain(RED),), captions=(evil,)),), title=evil),
            Grid(rows=(), title=evil, note=evil, folded=True),
        ],
        plots=[plain(RED)],
        tables=[Table(headings=(evil,), rows=((evil,),), title=evil, note=evil)],
        command=evil,
    )
    assert "<script" not in html
    # the page's title stands twice and is not repeated over a grid; an image's text is its row and its column
    assert html.count("&lt;script&gt;") == 15


def test_a_page_shows_images_first_then_plots_then_tables_then_the_command():
    html = page(
        title="Demo",
        grids=[Grid(rows=(Row(images=(plain(RED),)),))],
        plots=[plain(BLUE)],
        tables=[Table(headings=("column",), rows=(("tara",),))],
        command="tara demo",
    )
    places = ("<img", 'class="wide"', 'class="table"', "tara demo")
    found = [html.index(place) for place in places]
    assert found == sorted(found)


def test_columns_of_numbers_are_aligned_right_and_columns_of_words_left():
    table = Table(headings=("name", "share", "what"), rows=(("a", "0.5 [0.2, 0.7]", "7 words"), ("b", "", "words")))
    assert table.numeric == (False, True, False)
    html = page(title="Demo", tables=[table])
    assert '<th scope="col">name</th><th scope="col" class="number">share</th><th scope="col">what</th>' in html
    assert '<td>b</td><td class="number"></td><td>words</td>' in html
    assert '<th scope="col">name' in page(title="Nothing yet", tables=[Table(headings=("name",), rows=())])


def test_a_folded_grid_or_table_is_under_its_title():
    grid = Grid(rows=(Row(images=(plain(RED),)),), title="Layer by layer", folded=True)
    table = Table(headings=("setting", "value"), rows=(("rank", "8"),), title="All settings", folded=True)
    html = page(title="Maps", grids=[grid], tables=[table])
    assert re.search(r"<details><summary>Layer by layer</summary>.*<img.*</details>", html, re.DOTALL)
    assert re.search(r"<details><summary>All settings</summary>.*<td>rank</td>.*</details>", html, re.DOTALL)


def test_images_without_headings_stand_in_as_many_rows_as_it_takes_and_others_in_columns():
    photos = Grid(rows=(Row(images=(plain(RED), plain(BLUE))),))
    assert 'class="grid free"' in page(title="Photos", grids=[photos])
    assert 'class="grid"' in page(title="Photos", grids=[Grid(rows=photos.rows, columns=("one", "two"))])


def test_a_large_image_is_embedded_no_larger_than_it_is_shown():
    html = page(title="Demo", grids=[Grid(rows=(Row(images=(plain(RED, (2000, 1000)), plain(BLUE))),))])
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in re.findall(r'base64,([^"]*)"', html)]
    assert sizes == [(LARGEST_CELL, LARGEST_CELL // 2), (64, 64)]


def test_a_page_needs_no_other_file():
    html = page(title="Demo", grids=[Grid(rows=(Row(images=(plain(RED), plain(BLUE))),))])
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "://" not in html
    assert "default-src 'none'" in html  # whatever a text may hold, a browser runs and fetches nothing


def test_an_embedded_image_is_the_image():
    data = base64.b64decode(embedded(plain(RED)).split(",")[1])
    assert Image.open(io.BytesIO(data)).getpixel((3, 3)) == RED


def test_a_loss_curve_survives_losses_that_are_not_numbers():
    png = loss_curve({"xlo dog": [(1, 0.5), (2, float("nan")), (3, 0.25)], "szn cat": [(1, float("inf"))]})
    assert Image.open(io.BytesIO(png)).size == (1120, 630)


def test_a_loss_curve_of_nothing_is_an_empty_plot():
    assert Image.open(io.BytesIO(loss_curve({}))).format == "PNG"


def test_the_running_mean_of_a_constant_is_that_constant():
    np.testing.assert_allclose(running_mean(np.full(50, 0.3)), 0.3)


def test_the_running_mean_is_the_mean_of_its_window():
    values = np.random.default_rng(0).normal(size=200)
    np.testing.assert_allclose(running_mean(values)[100], values[90:111].mean())
