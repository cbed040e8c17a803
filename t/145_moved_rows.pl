# Keys are looked for first where their rows were last: wherever the rows have gone
# since, and whatever is there now, each key gets its own verdict, and no error.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(time);

my $site = RegPilot::Test->new(responder => 0, conf => <<~CONF);
	autovacuum = off
	fsync = off
	log_statement = none
	shared_buffers = 1MB
	CONF
my $node = $site->node;
my @projects =
  map { $site->sql("SELECT regpilot.create_project('project $_', 'enterprise')") } qw(one two);

# Keys are texts, and have themselves as names. "keys" is a query for them.
sub series { return "SELECT '$_[0] ' || i FROM generate_series($_[1], $_[2]) i" }

# The INSERT of such keys.
sub insertion
{
	my ($keys) = @_;
	return <<~SQL;
		INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions)
		SELECT '$projects[0]', key, 'sk_...', sha256(key::bytea), '{gateway:write}' FROM ($keys) k (key)
		SQL
}

# The query for how many of them get which verdict: "wrong" is that of another key.
sub question
{
	my ($keys) = @_;
	return <<~SQL;
		SELECT string_agg(verdict || ' ' || count, ', ' ORDER BY verdict) FROM (
			SELECT verdict, count(*) FROM (
				SELECT CASE WHEN (a).name <> key THEN 'wrong' ELSE (a).verdict::text END AS verdict
				FROM (SELECT key, regpilot.authorize(key::regpilot.secret) AS a
					FROM ($keys) k (key) OFFSET 0) b) c
			GROUP BY verdict) d
		SQL
}

sub verdicts { return $site->sql(question(@_)) }

# Who has cached what there is to cache of the table.
my $session = $node->background_psql('regpilot');

# verdicts_are(keys, verdicts, why): for a new session and for that one
sub verdicts_are
{
	my ($keys, $expected, $why) = @_;
	is(verdicts($keys), $expected, $why);
	is($session->query_safe(question($keys)), $expected, "$why, in a session that was there before");
}

sub pages { return $site->sql(q{SELECT pg_relation_size('regpilot.api_key') / current_setting('block_size')::int}) }

# --- that there are such places

my $stay = series('stay', 1, 100);
$site->sql(insertion($stay));

# How often the index of digests is used to authorize those keys.
sub index_scans
{
	my ($keys) = @_;
	return (split /\n/, $site->sql('BEGIN;' . question($keys) . <<~SQL))[-1];
		; SELECT pg_stat_get_xact_numscans('regpilot.api_key_digest_key'::regclass)
		SQL
}
is(index_scans($stay), 100, 'keys are found by index at first');
is(index_scans($stay), 0, 'and where they were from then on');
is(index_scans(series('none', 1, 100)), 100, 'keys that are not there never are');

# --- rows that move

$site->sql('UPDATE regpilot.api_key SET hint = hint || 1') foreach 1 .. 3;
verdicts_are($stay, 'ok 100', 'rows updated in place');
is(index_scans($stay), 0, 'without the index');

foreach my $i (1 .. 40)
{
	$site->sql(qq{UPDATE regpilot.api_key SET hint = 'in place $i' WHERE name = 'stay 7'});
	$site->sql(q{SELECT FROM regpilot.authorize('stay 7')});
}
is($site->sql(q{SELECT hint FROM regpilot.authorize('stay 7')}), 'in place 40', 'the newest version is read');

foreach my $i (1 .. 40)
{
	$site->sql(qq{UPDATE regpilot.api_key SET project_id = '$projects[ $i % 2 ]'});
	is($site->sql(q{SELECT project FROM regpilot.authorize('stay 7')}), 'project ' . ($i % 2 ? 'two' : 'one'), "moved, $i")
	  if $i > 37;
	$site->sql('VACUUM regpilot.api_key') if $i % 10 == 0;
}
verdicts_are($stay, 'ok 100', 'rows moved');

# --- places that are used again

my $gone = series('gone', 1, 500);
my $new = series('new', 1, 500);
my $places = q{SELECT string_agg(ctid::text, ' ' ORDER BY ctid) FROM regpilot.api_key WHERE name LIKE};
$site->sql(insertion($gone));
verdicts_are($gone, 'ok 500', 'keys');
my $before = $site->sql("$places 'gone %'");
$site->sql($_) foreach q{DELETE FROM regpilot.api_key WHERE name LIKE 'gone %'}, 'VACUUM (TRUNCATE off) regpilot.api_key', insertion($new);
is($site->sql("$places 'new %'"), $before, 'others take their places');
verdicts_are($gone, 'invalid 500', 'deleted keys, whose places others have');
verdicts_are($new, 'ok 500', 'and those');

# again with a version that is not the first in its place
$site->sql(q{UPDATE regpilot.api_key SET hint = 'updated' WHERE name LIKE 'new %'});
verdicts_are($gone, 'invalid 500', 'deleted keys, whose places lead on to others');

# --- buffers that hold other blocks by now

# Ten tables that fit into the server's 128 buffers one by one, not together.
$site->sql("CREATE TABLE other_$_ AS SELECT repeat('x', 1500) FROM generate_series(1, 100)") foreach 1 .. 10;
my $held = q{SELECT count(*) FROM pg_buffercache WHERE relfilenode = pg_relation_filenode('regpilot.api_key')};
$site->sql('CREATE EXTENSION pg_buffercache');
foreach my $round (1 .. 3)
{
	verdicts_are("$stay UNION ALL $new", 'ok 600', "blocks are read, $round");
	my $left;
	foreach (1 .. 20)    # for the worker's fold, too, looks at keys when its time comes
	{
		$site->sql("SELECT count(*) FROM other_$_") foreach (1 .. 10) x 3;
		$left = $site->sql($held) or last;
	}
	is($left, 0, 'and their buffers are taken for others');
}
verdicts_are("$stay UNION ALL $new UNION ALL $gone", 'invalid 500, ok 600', 'when all have changed their buffers');

# --- tables that are rewritten, or end before the place

$site->sql($_) foreach q{DELETE FROM regpilot.api_key WHERE name LIKE 'new %' AND length(name) = 6}, 'VACUUM FULL regpilot.api_key';
verdicts_are($new, 'invalid 90, ok 410', 'after VACUUM FULL');
$site->sql('CLUSTER regpilot.api_key USING api_key_pkey');
verdicts_are("$stay UNION ALL $new", 'invalid 90, ok 510', 'after CLUSTER');

my $last = series('last', 1, 5000);
$site->sql(insertion($last));
verdicts_are($last, 'ok 5000', 'keys at the end of the table');
$before = pages();
$site->sql($_) foreach q{DELETE FROM regpilot.api_key WHERE name LIKE 'last %'}, 'VACUUM regpilot.api_key';
cmp_ok(pages(), '<', $before / 2, 'VACUUM shortens the table');
verdicts_are($last, 'invalid 5000', 'deleted keys, whose places are beyond the end');
$site->sql(insertion($last));
verdicts_are($last, 'ok 5000', 'the same keys again');

my $kept = q{SELECT key FROM (VALUES ('stay 1'), ('last 5000')) k (key)};
$site->sql($_) foreach 'TRUNCATE regpilot.api_key CASCADE', insertion($kept);
verdicts_are("$stay UNION ALL $last", 'invalid 5098, ok 2', 'after TRUNCATE');

# --- rows that come and go

my ($old_id) = $site->sql(q{SELECT id FROM regpilot.api_key WHERE name = 'stay 1'});
$site->sql($_) foreach q{DELETE FROM regpilot.api_key WHERE name = 'stay 1'}, insertion(q{SELECT 'stay 1'});
isnt($site->sql(q{SELECT key_id FROM regpilot.authorize('stay 1')}), $old_id, 'a key deleted and made anew is the new one');

$session->query_safe('BEGIN');
$session->query_safe(insertion(series('undone', 1, 10)));
is($session->query_safe(question(series('undone', 1, 10))), 'ok 10', 'in the transaction that makes the keys');
is(verdicts(series('undone', 1, 10)), 'invalid 10', 'and outside of it');
$session->query_safe('SAVEPOINT before');
$session->query_safe(q{UPDATE regpilot.api_key SET active = false, rotated_from = id WHERE name = 'stay 1'});
is($session->query_safe(question(q{SELECT 'stay 1'})), 'inactive 1', 'a change not committed yet, for who made it');
is(verdicts(q{SELECT 'stay 1'}), 'ok 1', 'and for others');
$session->query_safe('ROLLBACK TO before');
is($session->query_safe(question(q{SELECT 'stay 1'})), 'ok 1', 'and taken back, for who made it');
$session->query_safe('ROLLBACK');
verdicts_are(series('undone', 1, 10), 'invalid 10', 'after the ROLLBACK');
$site->sql($_) foreach 'VACUUM regpilot.api_key', insertion(series('other', 1, 10));
verdicts_are(series('undone', 1, 10), 'invalid 10', 'and in the places of others');

foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	my $reset = q{UPDATE regpilot.api_key SET active = true WHERE name = 'other 1'};
	$site->sql($reset);
	$session->query_safe("BEGIN ISOLATION LEVEL $level");
	is($session->query_safe(question(q{SELECT 'other 1'})), 'ok 1', "$level, before");
	$site->sql(q{UPDATE regpilot.api_key SET active = false WHERE name = 'other 1'});
	is($session->query_safe(question(q{SELECT 'other 1'})), 'inactive 1', "$level, after an update in place");
	$site->sql($_) foreach $reset, qq{UPDATE regpilot.api_key SET project_id = '$projects[1]' WHERE name = 'other 1'};
	is($session->query_safe(question(q{SELECT 'other 1'})), 'ok 1', "$level, after the row moved");
	$site->sql(q{DELETE FROM regpilot.api_key WHERE name = 'other 2'});
	is($session->query_safe(question(q{SELECT 'other 2'})), 'invalid 1', "$level, after a deletion");
	$session->query_safe('COMMIT');
	$site->sql(insertion(q{SELECT 'other 2'}));
}

# --- a table of the same name

$site->sql('DROP EXTENSION regpilot; CREATE EXTENSION regpilot');
@projects = map { $site->sql("SELECT regpilot.create_project('project $_', 'enterprise')") } qw(one two);
$site->sql(insertion($new));
verdicts_are("$stay UNION ALL $last UNION ALL $new", 'invalid 5100, ok 500', 'after the extension was made anew');

# --- all of it at once

$site->sql(insertion($stay));
my $end = time + 8;
my @work = (
	sub { return ('VACUUM FULL regpilot.api_key', 'VACUUM regpilot.api_key', 'CLUSTER regpilot.api_key USING api_key_digest_key', 'VACUUM regpilot.api_key') },
	sub {
		my $one = 1 + int rand 100;
		return (
			"UPDATE regpilot.api_key SET project_id = '$projects[ rand 2 ]' WHERE name = 'stay $one'",
			"UPDATE regpilot.api_key SET hint = 'h $one' WHERE name = 'stay $one'",
			q{UPDATE regpilot.api_key SET hint = 'h' WHERE name LIKE 'stay %'});
	},
	sub {
		my $passing = 'passing ' . int rand 1000;
		return (
			insertion(series($passing, 1, 200)), question(series($passing, 1, 200)),
			"DELETE FROM regpilot.api_key WHERE name LIKE '$passing %'", question(series($passing, 1, 200)));
	});
my $counts = $site->in_parallel(
	@work + 3,
	sub {
		my ($n) = @_;
		my %count;
		my $keys = $n % 2 ? $stay : series('gone', 1, 100);
		srand $n;
		while (time < $end)
		{
			$count{$_}++ foreach grep { /\w/ } map { $site->sql($_) } $n < @work ? $work[$n]->() : (question($keys)) x 10;
		}
		return \%count;
	});
is_deeply(
	[ sort keys %$counts ],
	[ 'invalid 100', 'invalid 200', 'ok 100', 'ok 200' ],
	'rows rewritten, moved, added and deleted under load: no error, no wrong verdict') or diag explain $counts;

$session->quit;
done_testing();
