"""Changes that go out in stages. `plan` and `gates` decide without I/O; `relay.control.engine` acts."""
