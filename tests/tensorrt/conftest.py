from __future__ import annotations

import sys
from pathlib import Path

import plugin_builds
import pytest
from plugin_harness import NAMES, Fake, Harness, fields_of

# cases, layers and models are shared with the exporter's tests
sys.path.append(str(Path(__file__).parents[1] / "export"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exporter's three whole models as files."""
    from models import CONFIGS, export_model

    folder = tmp_path_factory.mktemp("models")
    return {name: export_model(name, folder) for name in CONFIGS}


# ------------------------------------------------------------------ the plugins, without a GPU


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plugins")


@pytest.fixture(scope="session")
def harness_path(plugin_folder):
    return plugin_builds.build_harness(plugin_folder)


@pytest.fixture(scope="session")
def plugins_path(plugin_folder):
    return plugin_builds.build_fake(plugin_folder)


@pytest.fixture(scope="session")
def harness(harness_path):
    return Harness(str(harness_path))


@pytest.fixture(scope="session")
def loaded(harness, plugins_path):
    return harness.open(str(plugins_path))


@pytest.fixture
def fake(plugins_path, loaded, harness):
    fake = Fake(str(plugins_path))
    fake.asked()
    harness.log()
    return fake


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def creator(harness, loaded, name):
    return harness.creator(loaded, name)


@pytest.fixture
def plugin(harness, creator, name):
    made = harness.create(creator, fields_of(name))
    assert made, harness.log()
    yield made
    harness.destroy(made)
