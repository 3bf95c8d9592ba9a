"""Changes that go out by stages. `model`, `plan` and `gates` decide, without I/O; `engine` acts."""
