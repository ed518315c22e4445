# Short names for what README and continuous integration run. `just` is not needed for anything.

# What there is.
default:
    @just --list

# Install what is missing (Debian packages).
setup:
    scripts/setup

# The whole path on a real disk image, step by step verified.
demo: setup
    scripts/demo

# All checks and tests, as continuous integration runs them.
ci:
    bash .ci/run

# All checks and tests, or some of them: just test lint tests
test *parts:
    scripts/test {{ parts }}

# Make the sources look as they should.
format:
    cargo fmt --all

# Programs, manual pages, completions, mount helpers and unit into /usr/local (PREFIX, DESTDIR).
install:
    cargo build --release --locked
    scripts/install
