"""What the doctor says of the table that is looked up while serving."""

import socket
from pathlib import Path

from loopwright.records.home import Home
from loopwright.records.settings import Settings
from loopwright.verbs.keep import doctor


def test_an_online_table_that_does_not_answer_is_no_good_health(tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path)) as home:
        [item] = [i for i in doctor(home).items if i.name == "online table"]
        assert item.ok
    with socket.socket() as nobody:  # bound and not listening: whoever calls is refused
        nobody.bind(("127.0.0.1", 0))
        with Home(Settings(home=tmp_path, online=f"redis://:hidden@127.0.0.1:{nobody.getsockname()[1]}/0")) as home:
            said = doctor(home)
    [item] = [i for i in said.items if i.name == "online table"]
    assert not item.ok
    assert not said.ok
    assert "does not answer" in item.detail
    assert "hidden" not in str(said)
