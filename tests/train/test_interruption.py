"""Tests of commands that end at once on a signal, and say which one it was."""

import os
import signal

import pytest

from moebius.train.interruption import interruptible, signal_of

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_interrupts_and_is_named_wherever_it_is_caught(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(KeyboardInterrupt) as caught, interruptible(), interruptible():
        os.kill(os.getpid(), number)
    assert signal_of(caught.value) is number
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_an_interrupt_without_a_signal_is_that_of_the_keyboard():
    assert signal_of(KeyboardInterrupt()) is signal.SIGINT


def test_a_command_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
