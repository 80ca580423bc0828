"""The data: a folder of images is read as it lies there."""

from PIL import Image

from my_app import data


def test_a_folder_of_images(tmp_path, monkeypatch):
    for number, name in enumerate(data.CLASSES):
        folder = tmp_path / "test" / name
        folder.mkdir(parents=True)
        Image.new("L", (2 * data.SIZE, data.SIZE), color=number).save(folder / "a.png")
    monkeypatch.setenv("MY_APP_DATA", str(tmp_path))
    found = data.load("test")
    assert found.x.shape == (len(data.CLASSES), data.CHANNELS, data.SIZE, data.SIZE)
    assert found.y.tolist() == list(range(len(data.CLASSES)))
    assert (found.x == found.y.reshape(-1, 1, 1, 1)).all()
