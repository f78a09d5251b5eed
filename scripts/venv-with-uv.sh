# Sourced: a virtual environment of $python in $venv with uv in it, which finds wheels where pip does.
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# uv does not read pip's configuration; where pip finds wheels on disk (the CPU build of torch), so must uv.
if [ -z "${UV_FIND_LINKS:-}" ]; then
    UV_FIND_LINKS=${PIP_FIND_LINKS:-$("$venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
    UV_FIND_LINKS=$(echo "$UV_FIND_LINKS" | xargs | tr ' ' ',')
    export UV_FIND_LINKS
fi
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
