# shellcheck shell=bash
# What the launch scripts share: each step is printed with --dry-run and
# executed without. Sourced, after `dry_run=` and with descriptor 3 open on
# standard output. Written for bash 3.2 and later.

fail() { # CODE MESSAGE...
  local code=$1
  shift
  echo "error: $*" >&2
  exit "$code"
}

# Prints words as one line that a shell reads back.
quoted() { # WORD...
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_@%+=:,./-]* | '') word="'${word//\'/$quote}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Executes a command that changes something, or prints it.
run() { # COMMAND...
  if [ -n "$dry_run" ]; then
    quoted "$@" >&3
  else
    "$@"
  fi
}

# Executes a command that asks for something; a dry run prints it and assumes
# the answer.
ask() { # ASSUMED COMMAND...
  local assumed=$1
  shift
  if [ -n "$dry_run" ]; then
    quoted "$@" >&3
    echo "$assumed"
  else
    "$@"
  fi
}

need() { # PROGRAM WHAT-TO-DO
  [ -n "$dry_run" ] || command -v "$1" >/dev/null 2>&1 ||
    fail 2 "$1 isn't on the PATH: $2"
}

say() { # WORD...
  [ -n "$dry_run" ] || echo "$*"
}

# Prints the commit that the hosts get: HEAD, which must be all there is.
checked_commit() {
  local commit changed
  commit=$(git rev-parse --short=12 HEAD 2>/dev/null) ||
    fail 2 "$PWD is no git checkout: the hosts get the code of a commit"
  changed=$(git status --porcelain --untracked-files=no | wc -l | tr -d ' ')
  if [ "$changed" != 0 ] && [ -z "$dry_run" ]; then
    fail 2 "$changed files differ from commit $commit, which is what the hosts" \
      "get: commit them, or put them aside with git stash"
  fi
  echo "$commit"
}

# Puts the code of a commit into the bucket, where it isn't there yet.
publish_code() { # COMMIT URL
  if [ -n "$dry_run" ]; then
    quoted gcloud storage ls "$2" >&3
    echo "git archive --format=tar.gz $1 | $(quoted gcloud storage cp - "$2")" >&3
  elif ! gcloud storage ls "$2" >/dev/null 2>&1; then
    git archive --format=tar.gz "$1" | gcloud storage cp - "$2" ||
      fail 2 "$2 can't be written: is there such a bucket, and may you write it?"
  fi
}
