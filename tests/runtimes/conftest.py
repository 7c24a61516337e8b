"""Settings for the runtimes' tests."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def converted_models(tmp_path_factory):
    """Models are converted afresh by every run of the suite, and nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWNAS_CACHE_DIR", str(tmp_path_factory.mktemp("converted")))
        yield
