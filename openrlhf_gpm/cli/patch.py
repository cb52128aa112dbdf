"""`openrlhf-gpm patch`: apply, revert or check the patches on the installed OpenRLHF."""

import argparse
from pathlib import Path

from openrlhf_gpm import patching


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("patch", help="apply, revert or check the patches on the installed OpenRLHF")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("apply", help="patch OpenRLHF in place (idempotent)")
    actions.add_parser("revert", help="restore OpenRLHF byte for byte")
    actions.add_parser("status", help="state of every touched file; exit status 0 if all are patched, else 1")
    manifest = actions.add_parser("manifest", help="for maintainers: write manifest.json after editing a patch")
    manifest.add_argument("pristine", type=Path, help="folder that holds the unpatched openrlhf/ of that release")
    manifest.add_argument("series", type=Path, help="for example patches/openrlhf-0.11.2")


def run(args: argparse.Namespace) -> int:
    if args.action == "status":
        return _status()
    if args.action == "manifest":
        print(f"{args.series / 'manifest.json'}: {len(patching.write_manifest(args.pristine, args.series))} files")
        return 0
    changed = patching.apply() if args.action == "apply" else patching.revert()
    state = {"apply": "patched", "revert": "as released"}[args.action]
    found = patching.status()
    done = f"{len(changed)} files changed" if changed else "nothing to do"
    print(f"openrlhf {found.version} at {found.openrlhf} is {state}: {done}")
    return 0


def _status() -> int:
    found = patching.status()
    print(f"openrlhf {found.version} at {found.openrlhf}: {found.state}")
    for path, state in found.files.items():
        print(f"  {state:8}  {path}")
    return 0 if found.state == "patched" else 1
