# pg_upgrade from an older version: what the tables hold is the same byte for byte,
# keys are judged as before, and counting goes on. Needs a second server, whose
# directory dev/test puts into OLD_INSTALL.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(responder => 0, install_path => $ENV{OLD_INSTALL});
my $old = $site->node;
$site->sql('SELECT regpilot.flush_usage()');    # so the worker is there to write at the stop

# What is in the tables of the schema, and what pg_upgrade has to make again: what
# belongs to the extension, who may do what, which rows are dumped, which triggers
# fire, and so on. Left out is what newer versions have brought: the privilege
# MAINTAIN of owners, that arrays and row types of members are members too (both 17),
# and constraints that say NOT NULL (18).
my @facts = (
	q{SELECT 'member', pg_describe_object(classid, objid, objsubid)
	  FROM pg_depend JOIN pg_extension e ON e.oid = refobjid AND refclassid = 'pg_extension'::regclass
	  WHERE deptype = 'e' AND extname = 'regpilot' AND NOT EXISTS (
		SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
		WHERE classid = 'pg_type'::regclass AND t.oid = objid AND (typcategory = 'A' OR relkind <> 'c'))},
	q{SELECT 'dumped', t.oid::regclass, t.condition
	  FROM pg_extension, unnest(extconfig, extcondition) AS t (oid, condition) WHERE extname = 'regpilot'},
	q{SELECT 'version', extversion, extnamespace::regnamespace FROM pg_extension WHERE extname = 'regpilot'},
	q{SELECT 'trigger', tgrelid::regclass, tgname, tgenabled FROM pg_trigger t
	  JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'regpilot'::regnamespace AND NOT tgisinternal},
	q{SELECT 'relation', oid::regclass, relkind, relrowsecurity, relforcerowsecurity, reloptions
	  FROM pg_class WHERE relnamespace = 'regpilot'::regnamespace},
	q{SELECT 'policy', polrelid::regclass, polname, polcmd, polpermissive, polroles::regrole[],
		pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) FROM pg_policy},
	q{SELECT 'constraint', conrelid::regclass, conname, contype, convalidated, conkey, confrelid::regclass, confdeltype
	  FROM pg_constraint WHERE connamespace = 'regpilot'::regnamespace AND contype <> 'n'},
	q{SELECT 'function', oid::regprocedure, prosecdef, provolatile, proparallel, proconfig, prosrc, probin
	  FROM pg_proc WHERE pronamespace = 'regpilot'::regnamespace},
	# by default -1 in old versions, NULL in new ones
	q{SELECT 'statistics', attrelid::regclass, attname, attstattarget
	  FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
	  WHERE relnamespace = 'regpilot'::regnamespace AND attstattarget >= 0 AND attnum > 0},
	q{SELECT 'setting', setdatabase, setrole::regrole, setconfig FROM pg_db_role_setting},
	q{SELECT 'application', secret::bytea, verdict, outcome FROM application},
	q{SELECT 'membership', roleid::regrole, member::regrole FROM pg_auth_members},
	map {
		my ($kind, $from, $acl) = @$_;
		qq{SELECT 'privilege', $kind, grantee::regrole, privilege_type, is_grantable
		   FROM $from, aclexplode($acl) WHERE privilege_type <> 'MAINTAIN'}
	  }[ 'oid::regclass::text', q{pg_class}, q{CASE WHEN relnamespace = 'regpilot'::regnamespace THEN relacl END} ],
	[ 'oid::regprocedure::text', 'pg_proc', q{CASE WHEN pronamespace = 'regpilot'::regnamespace THEN proacl END} ],
	[ 'oid::regtype::text', 'pg_type', q{CASE WHEN typnamespace = 'regpilot'::regnamespace THEN typacl END} ],
	[ 'nspname', 'pg_namespace', q{CASE WHEN nspname = 'regpilot' THEN nspacl END} ],
	[
		q{attrelid::regclass || '.' || attname},
		'pg_attribute JOIN pg_class c ON c.oid = attrelid',
		q{CASE WHEN relnamespace = 'regpilot'::regnamespace THEN attacl END}
	],
	[
		q{'at first: ' || pg_describe_object(classoid, objoid, objsubid)}, 'pg_init_privs',
		q{CASE WHEN privtype = 'e' THEN initprivs END}
	],
);

# All of that as text.  The server is started for it without the module, so that
# nothing moves, and left stopped.
sub contents
{
	my ($node) = @_;
	$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
	$node->start;
	my $sql = sub { $node->safe_psql('regpilot', $_[0]) };

	my @contents = map { $sql->("SELECT * FROM ($_) f ORDER BY f::text COLLATE \"C\"") } @facts;
	foreach my $table (split /\n/, $sql->(q{
		SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'S') AND relnamespace = 'regpilot'::regnamespace
		ORDER BY relname}))
	{
		# a sequence has another column, on how far the log is ahead of it
		my $columns = $table =~ /_seq$/ ? 'last_value, is_called' : '*';
		push @contents, "-- $table",
		  $sql->(qq{COPY (SELECT $columns FROM $table t ORDER BY row(t.*)::text COLLATE "C") TO STDOUT});
	}

	$node->stop;
	$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'regpilot'");
	return join "\n", @contents;
}

# --- all that there can be before

my %key;

sub key
{
	my ($name, %option) = @_;
	my ($key_id, $key) = $site->create_key(%option);
	$key{$name} = { id => $key_id, key => $key };
	return $key_id;
}

key('active');
key('staging', environment => 'staging');
key('plan', plan => 'startup');
key('limited', plan => 'free', requests_per_minute => 3);
key('reads', permissions => ['gateway:read']);
my $inactive = key('inactive');
my $revoked = key('revoked');
my $expired = key('expired');
key('later', expires_at => '2099-12-31 23:59:59.999999+00');
$site->sql("SELECT regpilot.disable_key('$inactive')");
$site->sql("SELECT regpilot.revoke_key('$revoked', E'it''s\\tin a log\\n\\u00e9')");
$site->sql("UPDATE regpilot.api_key SET expires_at = '2020-02-29 12:00+00' WHERE id = '$expired'");

$site->sql($_) foreach (
	"UPDATE regpilot.plan SET requests_per_minute = 77 WHERE name = 'startup'",
	"DELETE FROM regpilot.plan WHERE name = 'growth'",
	"INSERT INTO regpilot.plan VALUES ('custom', 5)",
	"SELECT regpilot.create_project(E'caf\\u00e9 \\U0001F511', 'custom')",
	"INSERT INTO regpilot.upstream VALUES ('provider', 'https://provider.example/v1', 'PROVIDER_KEY')",
	"INSERT INTO regpilot.route (alias, upstream, model, priority) VALUES ('fast', 'provider', 'small', 5)",
	"UPDATE regpilot.route SET model = 'other' WHERE quality = 'cheap'",
	"DELETE FROM regpilot.route WHERE quality = 'frontier'",
	"CREATE ROLE auditor IN ROLE regpilot_reader",
	"GRANT SELECT (id, name) ON regpilot.api_key TO auditor",
	"INSERT INTO regpilot.project_member SELECT id, 'auditor' FROM regpilot.project WHERE plan = 'custom'",
	"ALTER DATABASE regpilot SET regpilot.rotation_period = '30d'",
	# the extension's types in a table of the application's
	"CREATE TABLE application (secret regpilot.secret, verdict regpilot.verdict, outcome regpilot.authorization)",
	"INSERT INTO application SELECT '$key{active}{key}', 'forbidden', regpilot.authorize('$key{active}{key}')",
);

# How a key is judged, but for what moves with time.
sub judgement
{
	my ($name, $permission) = @_;
	return $site->sql(qq{
		SELECT verdict, key_id, project_id, plan, requests_per_minute, project, name, hint, environment, counted_as,
			permissions
		FROM regpilot.authorize('$key{$name}{key}', '} . ($permission // 'gateway:write') . q{')});
}

sub judgements
{
	return join "\n", map { "$_ " . judgement($_) } sort keys %key;
}

my $judgements = judgements();
my %verdict = $judgements =~ /^(\w+) (\w+)\|/mg;
is_deeply(
	\%verdict,
	{
		%{ { map { $_ => 'ok' } qw(active staging plan limited later) } },
		reads => 'forbidden',
		inactive => 'inactive',
		revoked => 'revoked',
		expired => 'expired',
	},
	'before: a key in each state');
$site->sql("SELECT regpilot.authorize('$key{active}{key}', environment => e) FROM unnest('{dev,prod,ci,else}'::text[]) e");
$site->sql('SELECT regpilot.maintain_request_log()');
$site->sql("SELECT regpilot.record_many('{$key{active}{id}}', '{dev}', '{500}', '{1}', '{m}', '{123}', '{456}')");

# This stop writes the last counts.
$old->stop;
my $before = contents($old);
like($before, qr/^-- regpilot\.key_usage\n.*\tdev\t1\t1\t123\t456\t/ms, 'before: counts');
like($before, qr/^-- regpilot\.request_log_\d{8}\n.*\t500\t1\t\\N\t123\t456\tdev\tm$/m, 'before: a request in the log');
like($before, qr/it's\\tin a log\\n/, 'before: texts');

# --- the upgrade

# From version 18 on clusters have checksums unless told otherwise, and pg_upgrade
# wants both to be alike.
my ($initdb_help) = run_command([ 'initdb', '--help' ]);
my $new = RegPilot::Test::make_node('new',
	initdb => [ $initdb_help =~ /(--no-data-checksums)/ ? $1 : () ]);

my $versions = join ' to ', map { $_->config_data('--version') } $old, $new;
my $upgraded = run_log(
	[
		'pg_upgrade', '--no-sync', '--retain',
		'--old-datadir' => $old->data_dir,
		'--new-datadir' => $new->data_dir,
		'--old-bindir' => $old->config_data('--bindir'),
		'--new-bindir' => $new->config_data('--bindir'),
		'--socketdir' => $new->host,
		'--old-port' => $old->port,
		'--new-port' => $new->port,
	]);
my $logs = $new->data_dir . '/pg_upgrade_output.d/*/log';
ok($upgraded, "pg_upgrade from $versions") or die map { slurp_file($_) } glob "$logs/pg_upgrade_dump_*.log";

# it has started and stopped both servers; a worker is mentioned as it ends
my $server_log = join '', map { slurp_file($_) } glob "$logs/pg_upgrade_server.log";
like($server_log, qr/database system is shut down/, 'pg_upgrade kept the log of the servers');
unlike($server_log, qr/regpilot worker/, 'no worker runs while pg_upgrade does');
is_deeply([ split /\n/, contents($new) ], [ split /\n/, $before ], 'after: everything is as it was');

# --- life goes on

$new->start;
$site->{node} = $new;
$site->wait_for_worker;

is(judgements(), $judgements, 'after: each key is judged as before');
$new->poll_query_until('regpilot',
	"SELECT total_requests = 7 AND failed_requests = 1 FROM regpilot.key_overview WHERE key_id = '$key{active}{id}'")
  or fail('after: the worker adds to the totals');
is( $site->overview($key{active}{id}, 'total_requests, failed_requests, active_environments'),
	'7|1|{ci,dev,other,prod}',
	'after: totals go on');
is( $site->sql(qq{
		SELECT count(*) FROM (
			SELECT (regpilot.authorize('$key{limited}{key}')).verdict FROM generate_series(1, 5)) a
		WHERE verdict = 'ok'}),
	2,
	'after: a limit holds');
$site->sql("UPDATE regpilot.plan SET requests_per_minute = 78 WHERE name = 'startup'");
like(judgement('plan'), qr/^ok\|[^|]*\|[^|]*\|startup\|78\|/, 'after: a change of a plan takes hold');
my ($result, $out, $err) = $new->psql('regpilot', "UPDATE regpilot.api_key SET revoked_at = NULL WHERE id = '$revoked'");
like($err, qr/is revoked/, 'after: a revocation is for good');
is($site->sql("INSERT INTO regpilot.route (alias, upstream, model) VALUES ('new', 'provider', 'm') RETURNING id"),
	6, 'after: numbers of routes go on');
is( $site->sql("SET ROLE auditor; SELECT plan FROM regpilot.project"),
	'custom', 'after: a member sees its project and no other');
is( $site->sql("SELECT object, id = (SELECT max(id) FROM regpilot.audit_log)
		FROM regpilot.audit_log WHERE table_name = 'route' ORDER BY at DESC LIMIT 1"),
	'6|t',
	'after: the audit log goes on');
$site->{projects} = {};
$site->sql("DELETE FROM regpilot.project WHERE name = 'project enterprise'");

$site->start_responder;
$site->start_nginx;
$site->wait_for_verdicts;
is($site->get('/api/auth/verify', "X-API-Key: $key{plan}{key}")->{status}, 200, 'after: the responder serves an old key');
my ($key_id, $key) = $site->create_key;
is($site->chat($key)->{status}, 200, 'after: and a new one');

$site->end_responder('TERM');
$site->sql('DROP EXTENSION regpilot CASCADE');
is( $site->sql(q{
		SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'regpilot'::regnamespace)
			 + (SELECT count(*) FROM pg_type WHERE typnamespace = 'regpilot'::regnamespace)
			 + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'regpilot'::regnamespace)}),
	0,
	'after: the extension owns all that it made');

done_testing();
