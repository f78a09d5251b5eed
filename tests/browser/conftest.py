"""One Chromium for all browser tests; they are skipped where there is none."""

import pytest
from chromium import Chromium, Tab, find_chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium found: install one (Debian: apt-get install chromium) to test the page in a browser")
    started = Chromium(binary, tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture
def open_page(browser):
    """Opens a file in a tab of the wanted size and scheme."""
    tabs = []

    def opened(path, **options):
        tab = Tab(browser, **options)
        tabs.append(tab)
        tab.open(path)
        return tab

    yield opened
    for tab in tabs:
        tab.close()
