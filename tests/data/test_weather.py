import csv

import pytest
import torch
from torch.testing import assert_close

from sciml.data import Weather
from sciml.data.weather import AIRPORTS, hourly, weather_file
from sciml.errors import DataError


@pytest.fixture(scope="module")
def series():
    try:
        path = weather_file()
    except DataError as missing:
        pytest.skip(str(missing))
    return torch.from_numpy(hourly(path))


def test_values_are_those_of_the_file_in_metric_units(series):
    with weather_file().open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["origin"] == "JFK"]
    assert series.shape == (3, 8730, 6)
    jfk = series[AIRPORTS.index("JFK")]
    there = jfk[:, 0].isfinite()
    assert int(there.sum()) == len(rows) - 1  # one is faulty
    first = rows[0]
    assert first["time_hour"] == "2013-01-01T06:00:00Z"
    assert_close(jfk[0, 0].item(), (float(first["temp"]) - 32) * 5 / 9)
    assert_close(jfk[0, 5].item(), float(first["pressure"]))
    west = next(i for i, row in enumerate(rows) if row["wind_dir"] == "270")
    assert bool(there[:west].all())  # so that rows are hours
    assert_close(jfk[west, 3:5], torch.tensor([0.44704 * float(rows[west]["wind_speed"]), 0.0], dtype=torch.float64))


def test_impossible_readings_are_missing(series):
    temperature, dew, humidity, east, north, pressure = (x[x.isfinite()] for x in series.unbind(-1))
    assert float(torch.hypot(east, north).max()) < 25  # m/s
    assert -20 < float(temperature.min()) < float(temperature.max()) < 40
    assert -25 < float(dew.min()) < float(dew.max()) < 30
    assert 0 < float(humidity.min()) < float(humidity.max()) <= 100
    assert 980 < float(pressure.min()) < float(pressure.max()) < 1045
    hot = series[..., 0].diff(dim=1).abs()
    assert float(hot[hot.isfinite()].max()) < 17  # degrees within an hour


def test_no_hour_of_a_part_is_within_a_day_of_another(series):
    """Found by their values: of every window, where in the series it comes from."""
    data = Weather(window=30, stride=7, block=12)
    data.setup("fit")
    filled = series.float().nan_to_num().numpy()  # (a, t, c)
    places = {filled[a, i : i + 30].tobytes(): i for a in range(3) for i in range(series.shape[1] - 29)}
    hours = {}
    for name in ("train", "val", "test"):
        ts, ys, _ = data.part(name)
        assert_close(ts, torch.arange(30).double())
        found = {places[y.numpy().tobytes()] + k for y in ys for k in range(30)}
        hours[name] = torch.tensor(sorted(found))
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert int((hours[a][:, None] - hours[b]).abs().min()) > 24
    shares = {name: len(x) / series.shape[1] for name, x in hours.items()}
    assert shares["train"] > 0.3
    assert shares["test"] > shares["val"] > 0.09


def test_missing_package_and_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"block: expected days for .* at least 11, got 10"):
        Weather(block=10)
    with pytest.raises(ValueError, match="window, stride: expected hours"):
        Weather(window=1)
    monkeypatch.setattr("sciml.data.weather.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "sciml-torch\[data\]"'):
        Weather()
