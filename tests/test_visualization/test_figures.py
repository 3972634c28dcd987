import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmfocalnet.errors import UserError
from mmfocalnet.visualization import (
    ModulationMaps,
    ReceptiveField,
    draw_gates,
    draw_kernels,
    draw_modulator,
    draw_receptive_field,
    draw_sheet,
    save_figure,
    upsample_map,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)


@pytest.fixture
def maps():
    gates = np.linspace(-1, 2, 3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)
    return ModulationMaps(gates, gates[0] ** 2, (3, 5), stride=8, stage=1, block=0)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_upsampled_map_is_aligned_with_the_image():
    values = np.zeros((4, 6), np.float32)
    values[1, 2] = 1
    large = upsample_map(values, 8, (30, 45))
    assert large.shape == (30, 45)
    row, column = np.unravel_index(large.argmax(), large.shape)
    assert (row // 8, column // 8) == (1, 2)
    assert large[:, 40:].max() == 0


def test_gates_have_one_panel_each_and_one_colour_scale(image, maps):
    figure = draw_gates(image, maps)
    assert titles(figure) == [
        'Image',
        'Focal level 1, 3x3\n-1.00 to -0.03',
        'Focal level 2, 5x5\n0.01 to 0.99',
        'Global context\n1.03 to 2.00',
    ]
    overlays = [axes.images[1] for axes in figure.axes[1:4]]
    assert {overlay.get_clim() for overlay in overlays} == {(-1, 2)}
    np.testing.assert_array_equal(overlays[2].get_array(), upsample_map(maps.gates[2], 8, (30, 45)))


def test_modulator_is_drawn_over_the_image(image, maps):
    figure = draw_modulator(image, maps)
    assert figure.get_suptitle() == 'Modulator, stage 1, block 0'
    np.testing.assert_array_equal(
        figure.axes[1].images[1].get_array(), upsample_map(maps.modulator, 8, (30, 45))
    )


def test_kernels_are_arranged_by_norm():
    kernels = np.stack([np.full((3, 3), value, np.float32) for value in (1, -4, 0)])
    figure = draw_kernels([kernels])
    assert titles(figure) == ['Focal level 1, 3x3\n3 of 3 channels']
    sheet = figure.axes[0].images[0].get_array().filled(np.nan)
    assert sheet.shape == (7, 7)
    np.testing.assert_array_equal(
        sheet[:3, :3], -1
    )  # the largest norm, divided by the largest weight
    np.testing.assert_array_equal(sheet[:3, 4:], 1)
    np.testing.assert_array_equal(sheet[4:, :3], 0)
    assert np.isnan(sheet[3]).all() and np.isnan(sheet[4:, 4:]).all()
    with pytest.raises(UserError, match='focal_levels=0'):
        draw_kernels([])


@pytest.mark.parametrize(
    ('box', 'label'),
    [
        ((5, 10, 25, 30), '20x20 pixels (blue frame)'),
        ((-5, 10, 25, 40), '30x30 pixels (blue frame, partly beyond the image)'),
        ((-5, -5, 65, 65), '70x70 pixels (larger than the image)'),
    ],
)
def test_theoretical_field_is_labelled_and_framed(image, box, label):
    field = ReceptiveField(np.ones((30, 45), np.float32), box, stage=0)
    figure = draw_receptive_field(image, field)
    assert label in figure.get_supxlabel()
    frame = figure.axes[0].patches[0]
    assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == (box[1], box[0])
    assert frame.get_width() == frame.get_height() == field.size
    assert figure.axes[0].get_xlim() == (-0.5, 44.5)


def test_figure_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / 'new/map.png'
    save_figure(Figure(), out)
    Image.open(out).verify()
    before = out.read_bytes()

    def fail(_, file, **__):
        file.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Figure, 'savefig', fail)
    with pytest.raises(UserError, match=r'map\.png'):
        save_figure(Figure(), out)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_figure_in_a_folder_that_cannot_be_created_raises(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'map\.png'):
        save_figure(Figure(), tmp_path / 'file/map.png')


def test_sheet_arranges_images_in_rows(tmp_path):
    files = [tmp_path / f'{number}.png' for number in range(3)]
    for number, file in enumerate(files):
        Image.fromarray(np.full((20, 40, 3), 80 * number + 40, np.uint8)).save(file)
    draw_sheet(files, tmp_path / 'sheet.png')
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png').convert('L')).astype(int)
    height, width = sheet.shape
    middles = [sheet[y * height // 4, x * width // 4] for y in (1, 3) for x in (1, 3)]
    assert middles == [40, 120, 200, 255]
