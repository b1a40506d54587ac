"""Verbs and their options. Nothing heavy is imported here: `mover --help` has to be instant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mover import __version__
from mover.units import parse_duration

_ONLY_VM = "only this VM; repeatable"
_STORE_OR_JOB = "a store (path or URL) or a job file, whose store it then is"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `options.verb` says what to do. Exits with 2 on a wrong one, with 0 after --help."""
    return build_parser().parse_args(arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser: the man page and the shells' completion are made from it, too."""
    parser = argparse.ArgumentParser(
        prog="mover", description="Agentless backup and restore of XCP-ng / XenServer virtual machines."
    )
    parser.add_argument("--version", action="version", version=f"mover {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    _run(verbs)
    _check(verbs)
    _explain(verbs)
    _list(verbs)
    _show(verbs)
    _restore(verbs)
    _serve(verbs)
    _verify(verbs)
    _prune(verbs)
    _repair(verbs)
    _copy(verbs)
    _report(verbs)
    _units(verbs)
    _key(verbs)
    _simulate(verbs)
    _demo(verbs)
    return parser


_Verbs = argparse._SubParsersAction  # the type has no public name


def _progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        choices=("auto", "plain", "json", "none"),
        default="auto",
        help="bars on a terminal and plain lines elsewhere (auto), plain lines, JSON lines, or nothing; on stderr",
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON on stdout")


def _passphrase(parser: argparse.ArgumentParser, prefix: str = "", *, required: bool = False) -> None:
    """Where the passphrase of an encrypted store comes from; with a prefix, another one."""
    what = {
        "": "the passphrase of an encrypted store",
        "new-": "the new passphrase",
        "to-": "the passphrase of the store to copy to",
    }[prefix]
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument(f"--{prefix}passphrase-file", metavar="FILE", help=f"{what} is the first line of this file")
    source.add_argument(f"--{prefix}passphrase-env", metavar="VARIABLE", help="… is in this variable")
    source.add_argument(f"--{prefix}passphrase-command", metavar="COMMAND", help="… is what this command prints first")


def _run(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("run", help="back up what a job selects")
    parser.add_argument("job", metavar="JOB.toml")
    parser.add_argument("--schedule", metavar="NAME", help="which of the job's schedules this run belongs to")
    parser.add_argument("--vm", action="append", default=[], metavar="NAME_OR_UUID", help=_ONLY_VM)
    parser.add_argument("--full", action="store_true", help="read every disk in full")
    parser.add_argument("--dry-run", action="store_true", help="say what would be backed up, and do nothing")
    _progress(parser)
    _json(parser)


def _check(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("check", help="say what would happen if the job ran now, and what stops it")
    parser.add_argument("job", metavar="JOB.toml")
    parser.add_argument("--schedule", metavar="NAME", help="as if this schedule of the job ran")
    parser.add_argument("--vm", action="append", default=[], dest="vms", metavar="NAME_OR_UUID", help=_ONLY_VM)
    parser.add_argument("--full", action="store_true", help="as if every disk were to be read in full")
    _json(parser)


def _explain(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("explain", help="say what the next run would read of each disk, and why")
    parser.add_argument("job", metavar="JOB.toml")
    parser.add_argument("vm", nargs="?", metavar="VM", help="only this VM (name or UUID)")
    parser.add_argument("--schedule", metavar="NAME", help="as if this schedule of the job ran")
    parser.add_argument("--full", action="store_true", help="as if every disk were to be read in full")
    _json(parser)


def _list(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("list", help="list restore points")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("vm", nargs="?", metavar="VM", help="only those of this VM (name or UUID)")
    _passphrase(parser)
    _json(parser)


def _show(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("show", help="show one restore point: disks, sizes, how they were read and why")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("point", metavar="POINT", help='an id or its beginning, a VM (its newest point), or "latest"')
    _passphrase(parser)
    _json(parser)


def _restore(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("restore", help="restore a point to a pool, or to files")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("point", metavar="POINT", help='an id or its beginning, a VM (its newest point), or "latest"')
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--job", metavar="JOB.toml", help="restore as a VM on the pool of this job")
    target.add_argument("--to", metavar="DIR", help="restore the disks to files in this folder")
    parser.add_argument("--format", choices=("raw", "vhd", "xva"), help="of the files (--to); default: raw")
    parser.add_argument("--disk", action="append", default=[], metavar="DISK", help="only this disk; repeatable")
    parser.add_argument("--sr", metavar="SR", help="where new disks go (--job): name or UUID")
    parser.add_argument("--name", metavar="NAME", help="the new VM's name (--job)")
    parser.add_argument(
        "--network", action="append", default=[], metavar="OLD=NEW", help="which network stands in for another (--job)"
    )
    parser.add_argument(
        "--new-macs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="new MAC addresses or the original ones (--job); the default is new ones if the VM, or one with its "
        "addresses, is there",
    )
    parser.add_argument(
        "--via",
        choices=("auto", "api", "xva", "replay"),
        help="how (--job): records and VHD streams, one XVA, or the last full's XVA and then what changed",
    )
    parser.add_argument(
        "--template", action=argparse.BooleanOptionalAction, default=None, help="make a template (--job)"
    )
    parser.add_argument(
        "--keep-partial", action="store_true", default=None, help="keep what a failed restore made (--job)"
    )
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--as-vdi", action="store_true", default=None, help="disks as VDIs of no VM (--job)")
    alone.add_argument(
        "--into", metavar="VDI", help="one disk over this detached VDI (UUID): what differs is written (--job)"
    )
    _progress(parser)
    _passphrase(parser)
    _json(parser)


def _serve(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("serve", help="serve the disks of a point over NBD, read-only, until interrupted")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("point", metavar="POINT", help='an id or its beginning, a VM (its newest point), or "latest"')
    parser.add_argument("--disk", action="append", default=[], metavar="DISK", help="only this disk; repeatable")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--port", type=int, metavar="N", help="TCP port (default: 10809; 0 takes any that is free)")
    place.add_argument("--socket", metavar="PATH", help="a Unix socket instead of a port")
    parser.add_argument("--address", metavar="A", help="where the port is open (default: 127.0.0.1, this machine only)")
    for name, meaning in (
        ("certificate", "serve over TLS only, with this certificate and its chain (PEM)"),
        ("key", "the certificate's key, where it is not in the same file"),
        ("client-ca", "let in only clients with a certificate signed by one of these"),
    ):
        parser.add_argument(f"--tls-{name}", metavar="FILE", help=meaning)
    parser.add_argument("--insecure", action="store_true", help="allow an --address that others can reach without TLS")
    _passphrase(parser)
    _json(parser)


def _verify(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("verify", help="check that what is stored is what was written")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("--point", action="append", default=[], metavar="POINT", help="only this point; repeatable")
    parser.add_argument("--deep", action="store_true", help="decompress everything and compare it with its id")
    parser.add_argument(
        "--older-than",
        type=_duration,
        metavar="DURATION",
        help="only points that were not found whole for so long, those that wait longest first",
    )
    parser.add_argument("--limit", type=_share, metavar="N%", help="of those, as many as need this share of the store")
    parser.add_argument(
        "--against-pool",
        metavar="POINT",
        help="compare this point with its snapshots on the pool of the JOB, which are read for it",
    )
    _progress(parser)
    _passphrase(parser)
    _json(parser)


def _share(text: str) -> float:
    number = text.removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = 0.0
    if number == text or not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"a share is more than 0% and at most 100%, as in 10%, not {text}")
    return share


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _prune(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("prune", help="forget what a job's [retention] does not keep, and give space back")
    parser.add_argument("store", metavar="STORE|JOB", help="a job; or a store, where no restore point is forgotten")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and do nothing")
    parser.add_argument(
        "--settle",
        type=_duration,
        default=0.0,
        metavar="DURATION",
        help="for places whose lists lag behind, as some network file systems: twice the longest lag (default: 0s)",
    )
    _progress(parser)
    _passphrase(parser)
    _json(parser)


def _repair(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("repair", help="mend what can be mended, and say what is lost")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--deep", action="store_true", help="decompress everything and compare it with its id")
    _progress(parser)
    _passphrase(parser)
    _json(parser)


def _copy(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("copy", help="copy restore points into another store: what it has not yet")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("target", metavar="STORE|JOB", help="where to; made if it is not there")
    parser.add_argument("--vm", action="append", default=[], metavar="VM", help=_ONLY_VM)
    parser.add_argument("--point", action="append", default=[], metavar="POINT", help="only this point; repeatable")
    parser.add_argument("--latest", type=int, metavar="N", help="only the newest N of each VM")
    _progress(parser)
    _passphrase(parser)
    _passphrase(parser, "to-")
    _json(parser)


def _report(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("report", help="a page of plots: what changed, was read and stored over time")
    parser.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
    parser.add_argument("vm", nargs="?", metavar="VM", help="only this VM (name or UUID)")
    parser.add_argument("--html", required=True, metavar="FILE", help="where the page goes; it needs no other file")
    _passphrase(parser)


def _units(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("units", help="systemd services and timers for a job's schedules")
    parser.add_argument("job", metavar="JOB.toml")
    parser.add_argument("--to", metavar="DIR", help="write them there (/etc/systemd/system) instead of printing them")
    parser.add_argument("--user", action="store_true", help="for the systemd of this user (~/.config/systemd/user)")


def _key(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("key", help="the passphrases of an encrypted store: add, remove, list, change")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, about in (
        ("add", "let one more passphrase open the store"),
        ("change", "put a new passphrase in the place of the one given; what is stored stays as it is"),
        ("list", "the keys: one for each passphrase"),
        ("remove", "let a passphrase open the store no longer"),
    ):
        sub = actions.add_parser(action, help=about)
        sub.add_argument("store", metavar="STORE|JOB", help=_STORE_OR_JOB)
        if action == "remove":
            sub.add_argument("key", metavar="KEY", help="its id, as `mover key list` shows it")
        if action in ("add", "change"):
            sub.add_argument("--label", metavar="TEXT", help="what the key is for; anybody can read it")
            _passphrase(sub, "new-", required=True)
        _passphrase(sub)
        _json(sub)


def _simulate(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("simulate", help="serve a simulated pool until interrupted; prints its [pool] for a job")
    parser.add_argument("--dir", required=True, metavar="D", help="where its disks and state are kept")
    parser.add_argument(
        "--vm", action="append", default=[], metavar="NAME=SIZE,…", help="a VM with such disks, half full; may repeat"
    )
    parser.add_argument("--nbd", choices=("tls", "insecure", "both", "none"), default="tls", help="networks' purpose")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of each NBD request")
    parser.add_argument("--password", default="simulated", metavar="TEXT", help="of its user root; protects nothing")
    parser.add_argument("--plain-http", action="store_true", help="serve the API without TLS")
    _json(parser)


def _demo(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("demo", help="the main job, from backup to restore, on a simulated pool")
    parser.add_argument("--dir", metavar="D", help="keep everything in this folder (default: a temporary one)")
    parser.add_argument("--small", action="store_true", help="small disks: seconds instead of a minute or two")
    _progress(parser)
