# The request log: a row for each request that came in over HTTP, in partitions
# that come and go while requests are recorded, dumped and restored with the rest.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

# A partition that autovacuum works on is not dropped at that time. Without WAL
# senders no commit waits for a standby.
my $site = RegPilot::Test->new(conf => <<~CONF);
	autovacuum = off
	wal_level = replica
	max_wal_senders = 1
	CONF
my $node = $site->node;
my ($key_id, $key) = $site->create_key(environment => 'prod');
my ($limited_id, $limited) = $site->create_key(requests_per_minute => 1);

my $object = JSON::PP::false;
my $marker = 'prompt-' . join '', map { chr(97 + int rand 26) } 1 .. 20;
my @prompt = (messages => [ { role => 'user', content => $marker } ]);

# What upkeep has to say.
sub upkeep
{
	my ($as_of) = @_;
	my ($status, $out, $err) =
	  $node->psql('regpilot', "SET statement_timeout = '20s'; SELECT regpilot.maintain_request_log($as_of)");
	return $err;
}

sub maintain
{
	my ($as_of) = @_;
	is(upkeep($as_of), '', 'upkeep' . ($as_of ? " as of $as_of" : ''));
	return;
}

# The days of that year that have a partition.
sub days
{
	my ($year) = @_;
	return $site->sql(<<~SQL);
		SELECT string_agg(right(c.relname, 4), ' ' ORDER BY c.relname) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
		WHERE inhparent = 'regpilot.request_log'::regclass AND c.relname LIKE 'request_log_$year%'
		SQL
}

# --- today's partition, made while the first request is recorded

my $record = q{SELECT regpilot.record_many('{%s}', '{ci}', '{500}', '{1}', '{x}', '{1}', '{1}')};
my $admin = $node->background_psql('regpilot', on_error_stop => 1);
my $session = $node->background_psql('regpilot', on_error_stop => 1);
my ($first_id) = $site->create_key;
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$admin->query_safe('BEGIN; SELECT regpilot.maintain_request_log()');
$session->query_until(qr/asked/, "\\echo asked\n" . sprintf("$record;\n", $first_id));
# it has to wait, unless the worker has made the partition before
$node->poll_query_until('regpilot',
	"SELECT query LIKE '%record_many%' AND (wait_event_type = 'Lock' OR state = 'idle') FROM pg_stat_activity WHERE pid = $pid")
  or die 'no request is recorded';
$admin->query_safe('COMMIT');
$admin->quit;
$session->query_safe('SELECT 1');
is($site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id = '$first_id'"), 1, 'a request waits for its partition to be made');

# --- what is in a row

$site->add_upstream('plain', $site->start_upstream);
$site->add_routes(map { [ $_, 'plain', $_ ] } qw(ok slow hang error-500 absurd-usage));

is($site->sql(<<~SQL), 8, 'today and seven days more have a partition');
	SELECT count(to_regclass('regpilot.request_log_' || to_char(now() AT TIME ZONE 'UTC' + make_interval(days => i), 'YYYYMMDD')))
	FROM generate_series(0, 7) i
	SQL

my @requests = (
	[ sub { $site->chat($key, @prompt) }, 200, 'echo', 1, 1 ],
	[ sub { $site->chat($key, @prompt, model => 'ok', stream => $object) }, 200, 'ok', 7, 5 ],
	[ sub { $site->chat($key, @prompt, model => 'ok', stream_options => { include_usage => JSON::PP::true }) }, 200, 'ok', 7, 5 ],
	[ sub { $site->chat($key, @prompt, model => 'ok') }, 200, 'ok', 7, 5 ],
	[ sub { $site->chat($key, @prompt, model => 'slow', stream => $object) }, 200, 'slow', 7, 5 ],
	[ sub { $site->chat($key, @prompt, model => 'absurd-usage', stream => $object) }, 200, 'absurd-usage', 2147483647, 0 ],
	[ sub { $site->chat($key, @prompt, model => 'error-500') }, 502, 'error-500', 0, 0 ],
	[ sub { $site->get('/api/auth/verify', "X-API-Key: $key") }, 200, '', 0, 0 ],
	[ sub { $site->chat($key, messages => []) }, 400, '', 0, 0 ],
	[
		sub {
			$site->curl('/api/ai/chat', '--max-time', '0.7', '--header', "X-API-Key: $key",
				'--json', JSON::PP::encode_json(user_message(@prompt, model => 'hang')));
		},
		499, 'hang', 0, 0
	]);
$_->[0]->() foreach @requests;

# not authorised, so no requests of a key
is($site->get('/api/auth/verify', "X-API-Key: $limited")->{status}, 200, 'within the limit');
is($site->get('/api/auth/verify', "X-API-Key: $limited")->{status}, 429, 'beyond the limit');
is($site->get('/api/auth/verify', 'X-API-Key: nobody')->{status}, 401, 'nobody');

my $ours = "FROM regpilot.request_log l WHERE key_id IN ('$key_id', '$limited_id')";
wait_until('the log', sub { $site->sql("SELECT count(*) $ours") >= @requests + 1 });
is($site->sql("SELECT status, model, prompt_tokens, completion_tokens $ours AND key_id = '$key_id' ORDER BY at, id"),
	join("\n", map { join '|', @$_[ 1 .. 4 ] } @requests), 'each request has a row: status, model and tokens');
is($site->sql("SELECT count(*), min(key_id::text), min(status) $ours AND key_id <> '$key_id'"),
	"1|$limited_id|200", 'and those that were refused have none');
is($site->sql("SELECT DISTINCT project_id, environment $ours AND key_id = '$key_id'"),
	$site->sql("SELECT id, 'prod' FROM regpilot.project WHERE plan = 'enterprise'"), 'project and environment');
is($site->sql("SELECT count(*) $ours AND (at > now() OR latency_ms < 0 OR latency_ms > 60000)"), 0, 'times are those of today');
is($site->sql("SELECT count(*) $ours AND model = 'echo' AND latency_ms > 0"), 1, 'latency, in milliseconds');
cmp_ok($site->sql("SELECT latency_ms $ours AND model = 'slow'"), '>=', 1500, 'latency of a slow answer');
is($site->sql("SELECT DISTINCT tableoid::regclass = ('regpilot.request_log_' || to_char(at AT TIME ZONE 'UTC', 'YYYYMMDD'))::regclass $ours"),
	't', "rows are in their day's partition");

my $rows = $site->sql("SELECT l $ours");
like($rows, qr/echo/, 'the rows, whole');
unlike($rows, qr/\Q$marker\E|one two|test/, 'hold no prompt and no answer');
unlike($rows, qr/sk_|$key|$limited/, 'and no key');
my $digest = $site->sql("SELECT encode(digest, 'hex') FROM regpilot.api_key WHERE id = '$key_id'");
unlike($rows, qr/$digest/, 'nor its digest');

# --- what cannot be logged

sub row_count { return $site->sql('SELECT count(*) FROM regpilot.request_log') }

my $failed = $site->overview($key_id, 'failed_requests');
my $logged = row_count();
$site->sql('ALTER TABLE regpilot.request_log ADD CONSTRAINT teapot CHECK (status <> 400) NOT VALID');
is($site->chat($key, messages => [])->{status}, 400, 'a request that cannot be logged is answered');
wait_until('the responder to say so', sub { slurp_file($site->{responder_log}) =~ /lost 1 outcomes/ });
is($site->overview($key_id, 'failed_requests'), $failed, 'and its outcome not counted');
is(row_count(), $logged, 'nor logged');
$site->sql('ALTER TABLE regpilot.request_log DROP CONSTRAINT teapot');
is($site->chat($key, messages => [])->{status}, 400, 'the next one');
wait_until('the log', sub { row_count() == $logged + 1 });
is($site->overview($key_id, 'failed_requests'), $failed + 1, 'is logged and counted');

# a synchronous standby that is not there holds nothing up
$node->append_conf('postgresql.conf', q{synchronous_standby_names = 'nobody'});
$node->reload;
$node->poll_query_until('regpilot', q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
$session->query_until(qr/asked/, "\\echo asked\nCREATE TABLE waits ();\n");
$node->poll_query_until('regpilot', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'})
  or die 'no commit waits for the standby';
my $start = time;
is($site->chat($key)->{status}, 200, 'a request while a synchronous standby is missing');
wait_until('the log', sub { row_count() == $logged + 2 });
cmp_ok(time - $start, '<', 4, 'is recorded without waiting for it');
$node->append_conf('postgresql.conf', q{synchronous_standby_names = ''});
$node->reload;
$session->query_safe('DROP TABLE waits');

# a key that is newer than the snapshot of the caller's transaction
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
my ($new_id) = $site->create_key;
$session->query_safe(sprintf $record, $new_id);
$session->query_safe('COMMIT');
is($site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id = '$new_id'"), 1, 'a key newer than the snapshot is logged');
is($site->overview($new_id, 'failed_requests'), 1, 'as it is counted');

# --- partitions in use; all as of a past in which nobody else makes any

maintain(q{'2001-03-01'});
is(days(2001), '0301 0302 0303 0304 0305 0306 0307 0308', 'partitions of a past');
$site->sql(<<~SQL);
	INSERT INTO regpilot.request_log (at, project_id, key_id, status, prompt_tokens, completion_tokens, environment)
	SELECT timestamptz '2001-02-28 22:00+00' + make_interval(hours => i), k.project_id, k.id, 200, 0, 0, 'ci'
	FROM regpilot.api_key k, generate_series(1, 240) i WHERE k.id = '$key_id'
	SQL
is($site->sql("SELECT count(*) FROM ONLY regpilot.request_log_default WHERE at < '2002-01-01'"), 48, 'rows of days without a partition');

$session->query_safe('BEGIN; LOCK TABLE regpilot.request_log_20010302 IN ACCESS SHARE MODE');
like(upkeep(q{'2001-04-05'}), qr/Table "request_log_20010302" is in use/, 'one is in use: a warning');
like(days(2001), qr/^0302 0306 0307 0308 /, 'and the others are dropped');
is($site->sql("SELECT count(*) FROM regpilot.request_log WHERE at < '2001-03-02'"), 0, 'with their rows, those of the default partition too');
is($site->sql("SELECT count(*) FROM regpilot.request_log WHERE at < '2002-01-01'"), 24 + 3 * 24 + 47, 'and none but theirs');
$session->query_safe('COMMIT');
maintain(q{'2001-04-05'});
like(days(2001), qr/^0306 0307 0308 /, 'in use no more, it is dropped as well');

# A reader of the whole holds nothing up, and is not disturbed.
$session->query_safe('BEGIN; SELECT count(*) FROM regpilot.request_log');
my $end = time + 20;
my $calls = $site->in_parallel(
	2,
	sub {
		return { warned => upkeep(q{'2001-05-01'}) =~ /is in use/ ? 1 : 0 } if $_[0] == 0;
		$node->safe_psql('regpilot', sprintf "SET statement_timeout = '5s'; $record", $key_id) for 1 .. 20;
		return { in_time => time < $end ? 1 : 0 };
	});
is_deeply($calls, { warned => 1, in_time => 1 }, 'a transaction has read the log: nothing is dropped, and recording goes on');
is($session->query_safe(q{SELECT count(*) FROM regpilot.request_log WHERE at < '2001-03-07'}), 24, 'nothing was taken from it');
$session->query_safe('COMMIT');
maintain(q{'2001-05-01'});
is(days(2001), '0405 0406 0407 0408 0409 0410 0411 0412 0501 0502 0503 0504 0505 0506 0507 0508', 'afterwards it is dropped');
is($site->sql("SELECT count(*) FROM regpilot.request_log WHERE at < '2002-01-01'"), 0, 'and the default partition emptied');

# upkeep under load: each request recorded once
$logged = row_count();
$end = time + 4;
my $counts = $site->in_parallel(
	4,
	sub {
		my ($n) = @_;
		my %count = (recorded => 0, rounds => 0);
		my $many = $record =~ s/\{%s\}/{%1\$s,%1\$s,%1\$s,%1\$s}/r =~ s/\{(ci|500|1|x)\}/{$1,$1,$1,$1}/gr;
		while (time < $end)
		{
			if ($n == 0)
			{
				# makes eight, drops eight; of those it meets in use, later
				$site->sql(q{SELECT regpilot.maintain_request_log('2001-06-01')});
				$site->sql('SELECT regpilot.maintain_request_log()');
				$count{rounds}++;
				next;
			}
			$count{recorded} += $_ foreach split /\n/, $site->sql(join ';', (sprintf $many, $key_id) x 50);
		}
		return \%count;
	});
cmp_ok($counts->{rounds}, '>', 3, 'partitions are made and dropped under load');
cmp_ok($counts->{recorded}, '>', 1000, 'while requests are recorded');
is(row_count(), $logged + $counts->{recorded}, 'of which each is in the log, once');
is(keys %$counts, 2, 'and nothing went wrong');
maintain('');
is(days(2001), '', 'no partition of the past is left');

# --- dump and restore

sub dump_of
{
	my ($database, @options) = @_;
	my ($dump, $stderr);
	IPC::Run::run([ 'pg_dump', @options, '--dbname', $node->connstr($database) ], '>', \$dump, '2>', \$stderr) or die $stderr;
	return $dump =~ s/^\\(un)?restrict .*\n//mgr;
}

sub contents
{
	my ($database) = @_;
	return $node->safe_psql($database, 'SELECT tableoid::regclass, l FROM regpilot.request_log l ORDER BY 1, l');
}

# a row without a partition of its own
$site->sql(<<~SQL);
	INSERT INTO regpilot.request_log (at, project_id, key_id, status, prompt_tokens, completion_tokens, environment)
	SELECT '2040-01-01 00:00+00', project_id, id, 200, 0, 0, 'ci' FROM regpilot.api_key WHERE id = '$key_id'
	SQL
my $dump = dump_of('regpilot');
append_to_file("$site->{dir}/dump.sql", $dump);
$node->safe_psql('postgres', 'CREATE DATABASE restored');
my ($status, $out, $err) = $node->psql('restored', undef, extra_params => [ '--file', "$site->{dir}/dump.sql", '--single-transaction' ], on_error_stop => 1);
is("$status: $err", '0: ', 'a dump is restored without an error');
is(contents('restored'), contents('regpilot'), 'rows are the same, in the same partitions');
is(dump_of('restored'), $dump, 'and so is a dump of it');
is($node->safe_psql('restored', <<~SQL), 't', 'the next row has a new id');
	INSERT INTO regpilot.request_log (at, project_id, key_id, status, prompt_tokens, completion_tokens, environment)
	SELECT now(), project_id, id, 200, 0, 0, 'ci' FROM regpilot.api_key WHERE id = '$key_id'
	RETURNING id > (SELECT max(id) FROM regpilot.request_log)
	SQL
($status, $out, $err) = $node->psql('restored', q{SELECT regpilot.maintain_request_log(now() + interval '1 day')});
is($err, '', 'upkeep of the restored log');
is($node->safe_psql("restored", <<~SQL), "8|8", 'each of its partitions has its index');
	SELECT count(*), sum((SELECT count(*) FROM pg_index WHERE indrelid = inhrelid)) FROM pg_inherits
	WHERE inhparent = 'regpilot.request_log'::regclass AND inhrelid::regclass::text ~ '\\d{8}\$'
		AND inhrelid::regclass::text > 'regpilot.request_log_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')
	SQL
$node->safe_psql('restored', 'DROP EXTENSION regpilot');
is($node->safe_psql('restored', q{SELECT count(*) FROM pg_class WHERE relnamespace = 'regpilot'::regnamespace}),
	0, 'DROP EXTENSION drops the partitions as well');

# --- another extension of the same name, under a session with a plan

$site->sql('DROP EXTENSION regpilot; CREATE EXTENSION regpilot');
$site->{projects} = {};
$site->wait_for_worker;
($key_id, $key) = $site->create_key;
$session->query_safe(sprintf $record, $key_id);
is(row_count(), 1, 'a session that recorded before records into the new table');
$site->wait_for_verdicts;
is($site->chat($key)->{status}, 200, 'and so');
wait_until('the log', sub { row_count() == 2 });
pass('does the responder');
$session->quit;

done_testing();
