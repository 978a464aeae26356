"""What holds for all tests."""

import signal

# A shell starts background jobs with SIGINT ignored, and so would be every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
