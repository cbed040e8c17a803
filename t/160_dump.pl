# Dumped and restored, every row of every table is what it was, also those that
# were seeded and have been changed or deleted since; and the restored database
# works.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(responder => 0);
my $node = $site->node;
my $dir = PostgreSQL::Test::Utils::tempdir();

# Every row of every table, in an order of its own, and every sequence.
sub contents
{
	my ($node, $database) = @_;
	my %contents;
	foreach my $table (split /\n/,
		$node->safe_psql($database,
			q{SELECT relname FROM pg_class WHERE relnamespace = 'regpilot'::regnamespace AND relkind = 'r'}))
	{
		$contents{$table} = $node->safe_psql($database,
			qq{COPY (SELECT * FROM regpilot.$table t ORDER BY t::text COLLATE "C") TO STDOUT});
	}
	foreach my $sequence (split /\n/,
		$node->safe_psql($database,
			q{SELECT relname FROM pg_class WHERE relnamespace = 'regpilot'::regnamespace AND relkind = 'S'}))
	{
		$contents{$sequence} =
		  $node->safe_psql($database, "SELECT last_value, is_called FROM regpilot.$sequence");
	}
	return \%contents;
}

# Returns what it said on standard error.
sub run_ok
{
	my ($what, @command) = @_;
	my $err = '';
	ok(IPC::Run::run(\@command, '<', \undef, '>', '/dev/null', '2>', \$err), $what) or diag($err);
	return $err;
}

sub psql { return ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $_[0]->connstr($_[1])) }

# --- a database that has seen some life

my (%id, %key);
foreach my $name (qw(active inactive revoked expired flagged rotated moved))
{
	($id{$name}, $key{$name}) = $site->create_key(plan => $name eq 'moved' ? 'startup' : 'free');
}
($id{limited}, $key{limited}) = $site->create_key(
	plan => 'enterprise',
	environment => 'staging',
	permissions => [ 'logs:read', 'gateway:write' ],
	requests_per_minute => 3,
	expires_at => '2099-12-31 23:59:59.123456+00');
my $strange = q{"quoted" \\back\\slash é 中文 \N 'single' $1 {a,b}};
$site->sql(<<~SQL);
	SELECT regpilot.disable_key('$id{inactive}');
	SELECT regpilot.revoke_key('$id{revoked}', \$\$found in a log: $strange\$\$);
	UPDATE regpilot.api_key SET name = \$\$$strange\$\$ WHERE id = '$id{active}';
	UPDATE regpilot.api_key SET expires_at = now() - interval '1 day' WHERE id = '$id{expired}';
	UPDATE regpilot.api_key SET flagged_at = now(), created_at = now() - interval '1 year' WHERE id = '$id{flagged}';
	UPDATE regpilot.api_key SET rotated_from = '$id{expired}', reviewed_at = now() WHERE id = '$id{rotated}';
	UPDATE regpilot.api_key SET project_id = (SELECT id FROM regpilot.project WHERE plan = 'enterprise') WHERE id = '$id{moved}';
	UPDATE regpilot.api_key SET digest = sha256(id::text::bytea) WHERE id = '$id{moved}';
	INSERT INTO regpilot.project_member SELECT id, 'regpilot_gateway' FROM regpilot.project WHERE plan = 'enterprise';
	INSERT INTO regpilot.project_member SELECT id, 'no such role' FROM regpilot.project;

	INSERT INTO regpilot.plan VALUES ('team', 1000);
	UPDATE regpilot.plan SET requests_per_minute = 12 WHERE name = 'free';
	UPDATE regpilot.plan SET name = 'unlimited' WHERE name = 'enterprise';
	DELETE FROM regpilot.plan WHERE name = 'growth';
	INSERT INTO regpilot.upstream VALUES ('provider', 'https://provider.example/v1', 'PROVIDER_KEY');
	UPDATE regpilot.upstream SET name = 'echo' WHERE name = 'builtin';
	UPDATE regpilot.route SET upstream = 'provider', model = 'large', priority = 7 WHERE id = 1;
	DELETE FROM regpilot.route WHERE id IN (2, 4);
	INSERT INTO regpilot.route (alias, upstream, model) VALUES ('large', 'provider', 'large'), ('gone', 'echo', 'echo');
	DELETE FROM regpilot.route WHERE alias = 'gone';
	SELECT regpilot.create_project('deleted');
	DELETE FROM regpilot.project WHERE name = 'deleted';
	SELECT (regpilot.authorize('$key{active}', environment => e)).verdict FROM unnest('{dev,ci,ci,elsewhere}'::text[]) e;
	SELECT (regpilot.authorize('$key{limited}')).verdict FROM generate_series(1, 5);
	SELECT regpilot.record_many('{$id{active},$id{limited}}', '{dev,staging}', '{200,500}', '{5,7}', '{x,y}', '{11,12}', '{13,14}');
	INSERT INTO regpilot.request_log (at, project_id, key_id, status, prompt_tokens, completion_tokens, environment)
	SELECT '2001-01-01 00:00+00', project_id, id, 200, 0, 0, 'ci' FROM regpilot.api_key;
	SELECT regpilot.maintain_request_log('2001-02-01');
	SELECT regpilot.record_many('{$id{active},$id{limited}}', '{dev,staging}', '{200,500}', '{5,7}', '{x,y}', '{11,12}', '{13,14}');
	SELECT regpilot.maintain_request_log();
	INSERT INTO regpilot.request_log (at, project_id, key_id, status, prompt_tokens, completion_tokens, environment)
	SELECT '2099-01-01 00:00+00', project_id, id, 200, 0, 0, 'ci' FROM regpilot.api_key;
	SELECT regpilot.record_many(array_agg(id), array_agg('ci'::text), array_agg(200), array_agg(1), array_agg('m'::text),
		array_agg(1::bigint), array_agg(1::bigint)) FROM regpilot.api_key;
	SELECT regpilot.roll_up_request_log();
	SELECT regpilot.flush_usage();
	INSERT INTO regpilot.usage_journal
	VALUES (7, gen_random_uuid(), '{$id{moved}}', '{ci}', '{2026-01-01 10:00+00}', '{1}', '{0}', '{2}', '{3}', '{NULL}');
	SQL

my $before = contents($node, 'regpilot');
foreach my $table (qw(plan project project_member api_key key_usage usage_journal upstream route audit_log request_log_default
	request_rollup_day request_rollup_hour request_rollup_key_day request_rollup_key_hour request_rollup_key_total))
{
	isnt($before->{$table}, '', "$table has rows to dump");
}

# --- dumped in several ways

my $connection = $node->connstr('regpilot');
run_ok('pg_dump', 'pg_dump', '-d', $connection, '-f', "$dir/plain.sql");
run_ok('pg_dump --inserts', 'pg_dump', '--inserts', '-d', $connection, '-f', "$dir/inserts.sql");
run_ok('pg_dump -Fc', 'pg_dump', '-Fc', '-d', $connection, '-f', "$dir/custom");
run_ok('pg_dump --schema-only', 'pg_dump', '--schema-only', '-d', $connection, '-f', "$dir/schema.sql");
run_ok('pg_dump --data-only', 'pg_dump', '--data-only', '-d', $connection, '-f', "$dir/data.sql");
run_ok('pg_dumpall', 'pg_dumpall', '-d', $node->connstr('postgres'), '-f', "$dir/all.sql");

# --- restored into databases of the same server, whose worker serves another one

$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(plain inserts custom single schema_only);
my $listener = $node->background_psql('plain');
$listener->query_safe('LISTEN regpilot');

run_ok('psql', psql($node, 'plain'), '-f', "$dir/plain.sql");
run_ok('psql, of INSERTs, in one transaction', psql($node, 'inserts'), '-1', '-f', "$dir/inserts.sql");
run_ok('pg_restore -j2', 'pg_restore', '--exit-on-error', '-j2', '-d', $node->connstr('custom'), "$dir/custom");
run_ok('pg_restore --single-transaction', 'pg_restore', '--single-transaction', '-d', $node->connstr('single'), "$dir/custom");
is_deeply(contents($node, $_), $before, "$_: all is as it was") foreach qw(plain inserts custom single);

unlike($listener->query('SELECT 1'), qr/notification/, 'and no key was announced');
$node->safe_psql('plain', q{SELECT regpilot.create_key(id, 'announced') FROM regpilot.project LIMIT 1});
like($listener->query('SELECT 1'), qr/notification.*create/, 'as it is later');
$listener->quit;

# over what is there
run_ok('pg_restore --clean', 'pg_restore', '--exit-on-error', '--clean', '-d', $node->connstr('plain'), "$dir/custom");
is_deeply(contents($node, 'plain'), $before, 'restored over another state: all is as it was');

# without data there are no seeds either
run_ok('psql, of the schema', psql($node, 'schema_only'), '-f', "$dir/schema.sql");
is(join('', values %{ contents($node, 'schema_only') }), '1|f1|f1|f', 'the schema alone: no rows');
run_ok('psql, of the data', psql($node, 'schema_only'), '-f', "$dir/data.sql");
is_deeply(contents($node, 'schema_only'), $before, 'and the data later: all is as it was');

# --- restored into another server, whose worker serves that very database

my $other = PostgreSQL::Test::Cluster->new('other');
$other->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
$other->append_conf('postgresql.conf', <<~CONF);
	shared_preload_libraries = 'regpilot'
	regpilot.database = 'regpilot'
	regpilot.flush_interval = 10ms
	CONF
$other->start;
my $errors = run_ok('psql, of the whole server', 'psql', '-X', '-q', '-d', $other->connstr('postgres'), '-f', "$dir/all.sql");
is(join("\n", grep { !/role "\S+" already exists/ } $errors =~ /ERROR.*/g), '', 'without an error but that its superuser is there');
my $restored = contents($other, 'regpilot');
if ($restored->{usage_journal} eq '')
{
	# The worker has added what is in the journal to the totals already.
	like($restored->{key_usage}, qr/^\Q$id{moved}\E\tci\t1\t0\t2\t3\t/m, 'another server: the journal has gone on');
	$restored->{usage_journal} = $before->{usage_journal};
	$restored->{$_} = join "\n", grep { !/^\Q$id{moved}\E\t/ } split /\n/, $restored->{$_} foreach qw(key_usage usage_history);
}
is_deeply($restored, $before, 'another server: all is as it was');

# --- and works

$node->append_conf('postgresql.conf', q{regpilot.database = 'custom'});
$node->restart;
foreach ([ $node, 'custom' ], [ $other, 'regpilot' ])
{
	my ($restored, $database) = @$_;
	my $sql = sub { return $restored->safe_psql($database, $_[0]) };
	my $name = $restored->name . ", $database";
	$restored->poll_query_until($database, q{SELECT (regpilot.authorize('nobody')).verdict}, 'invalid')
	  or die 'the worker did not come up';

	my %verdict = (
		active => 'ok|12',
		inactive => 'inactive|',
		revoked => 'revoked|',
		expired => 'expired|',
		flagged => 'ok|12',
		rotated => 'ok|12',
		limited => 'ok|3',
		moved => 'invalid|');
	is($sql->("SELECT verdict, requests_per_minute FROM regpilot.authorize('$key{$_}')"),
		$verdict{$_}, "$name: the verdict on the $_ key")
	  foreach sort keys %verdict;
	$sql->('SELECT regpilot.flush_usage()');
	is($sql->("SELECT total_requests FROM regpilot.key_overview WHERE key_id = '$id{active}'"), 5, "$name: and it counts on");

	is($sql->(q{SELECT verdict FROM regpilot.create_key((SELECT id FROM regpilot.project LIMIT 1), 'new') k,
			LATERAL regpilot.authorize(k.key::regpilot.secret)}), 'ok', "$name: a new key");
	cmp_ok($sql->(q{INSERT INTO regpilot.route (alias, upstream, model) VALUES ('new', 'echo', 'echo') RETURNING id}),
		'>', 6, "$name: a new route gets a number of its own");
	is($sql->(q{SELECT string_agg(action || ' ' || table_name, ',' ORDER BY id) FROM regpilot.audit_log
			WHERE id > } . (sort { $b <=> $a } $before->{audit_log} =~ /^(\d+)\t/mg)[0]),
		'update api_key,insert api_key,insert route', "$name: both are audited, as is the flag that use took off, and nothing else");
	is($sql->(q{SET ROLE regpilot_gateway; RESET ROLE; GRANT regpilot_reader TO regpilot_gateway; SET ROLE regpilot_gateway;
			SELECT count(*) FROM regpilot.project}), 1, "$name: a member sees its project only");
	$sql->('REVOKE regpilot_reader FROM regpilot_gateway');
	isnt($restored->psql($database, 'DELETE FROM regpilot.audit_log'), 0, "$name: the audit log is append-only");
}

done_testing();
