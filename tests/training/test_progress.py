import time

from skyens.training import progress


def test_items_pass_through_and_quick_work_prints_nothing(capsys):
    assert list(progress(range(5))) == [0, 1, 2, 3, 4]
    assert list(progress(iter("ab"), total=2, description="Training")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_slow_work_shows_a_bar_on_standard_error(capsys):
    for _ in progress(iter(range(3)), total=3, description="Training", delay=0.05):
        time.sleep(0.1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Training" in printed.err
    assert "3/3" in printed.err


def test_items_are_drawn_one_at_a_time():
    drawn = []
    items = progress(drawn.append(i) or i for i in range(3))
    assert next(items) == 0
    assert drawn == [0]
    items.close()
