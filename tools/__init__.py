"""Setup and checks of this repository; standard library only, because setup runs before anything is installed."""
