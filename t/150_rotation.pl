# Rotation and import when several sessions are at it, and over HTTP: a key has
# one successor, a digest one key, and no digest gets into the server's log.

use strict;
use warnings;
use lib 't/lib';
use Digest::SHA qw(sha256_hex);
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(
	conf => <<~CONF);
		log_statement = none
		log_parameter_max_length_on_error = -1
		log_error_verbosity = verbose
		log_lock_waits = on
		deadlock_timeout = 10ms
		CONF
my $node = $site->node;

sub status { return $site->get('/api/auth/verify', "X-API-Key: $_[0]")->{status} }

# rotate(key id, overlap): the successor's id and key
sub rotate
{
	my ($key_id, $overlap) = @_;
	return split /\|/, $site->sql("SELECT key_id, key FROM regpilot.rotate_key('$key_id', '$overlap')");
}

sub successors
{
	my ($key_id) = @_;
	return $site->sql("SELECT count(*) FROM regpilot.api_key WHERE rotated_from = '$key_id'");
}

# --- over HTTP

my ($old_id, $old_key) = $site->create_key;
my ($new_id, $new_key) = rotate($old_id, '7 days');
is(status($old_key) . status($new_key) . status($new_key), 200 x 3, 'both keys open during the overlap');
is($site->overview($old_id, 'total_requests') . $site->overview($new_id, 'total_requests'), '12', 'each with its own usage');
is($site->overview($new_id, 'rotated_from'), $old_id, 'and the new one tells of the old one');

# as if the overlap were over
$site->sql("UPDATE regpilot.api_key SET expires_at = now() WHERE id = '$old_id'");
is(status($old_key) . status($new_key), '401200', 'the old key is refused after the overlap');
is($site->chat($old_key)->{body}, $body{invalid}, 'as any expired key');

($old_id, $old_key) = $site->create_key;
($new_id, $new_key) = rotate($old_id, '2 seconds');
is(status($new_key), 200, 'the new key opens at once');
wait_until('the overlap to be over', sub { status($old_key) == 401 });
is(status($new_key), 200, 'the old key ends by itself, the new one does not');

($old_id, $old_key) = $site->create_key;
($new_id, $new_key) = rotate($old_id, '0');
is(status($old_key) . status($new_key), '401200', 'without an overlap the old key is refused at once');

# --- two sessions whose turn we decide

my $first = $node->background_psql('regpilot', on_error_stop => 0);
my $second = $node->background_psql('regpilot', on_error_stop => 0);

# The first session does its part in an open transaction, the second one waits
# for it, and the first one ends its transaction: the second one's SQLSTATE.
sub in_turn
{
	my ($do, $wait, $end) = @_;
	$first->query_safe('BEGIN');
	$first->query_safe($do);
	$second->query_until(qr/asked/, "\\echo asked\n$wait;\n\\echo state :SQLSTATE\n");
	$node->poll_query_until('regpilot', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'})
	  or die 'the second session does not wait';
	$first->query_safe($end);
	my ($state) = $second->query('') =~ /^state (\w{5})$/m;
	$second->{stderr} = '';
	return $state;
}

sub rotate_call { return "SELECT count(*) FROM regpilot.rotate_key('$_[0]')" }
sub revoke_call { return "SELECT regpilot.revoke_key('$_[0]')" }

($old_id) = $site->create_key;
is(in_turn(rotate_call($old_id), rotate_call($old_id), 'COMMIT'), '55000', 'rotated while it is being rotated: refused');
is(successors($old_id), 1, 'and there is one successor');

($old_id) = $site->create_key;
is(in_turn(rotate_call($old_id), rotate_call($old_id), 'ROLLBACK'), '00000', 'unless the first rotation is rolled back');
is(successors($old_id), 1, 'and there is one successor then, too');

# the snapshot of the first session does not show what the second one does,
# which does not even shorten the old key's life
($old_id) = $site->create_key;
$site->sql("UPDATE regpilot.api_key SET expires_at = now() + interval '1 hour' WHERE id = '$old_id'");
$first->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$first->query_safe('SELECT count(*) FROM regpilot.api_key');
rotate($old_id, '7 days');
like($first->query(rotate_call($old_id) . ";\n\\echo state :SQLSTATE"), qr/^state 40001$/m, 'REPEATABLE READ: cannot be serialized');
$first->{stderr} = '';
$first->query_safe('ROLLBACK');
is(successors($old_id), 1, 'and there is one successor');

($old_id, $old_key) = $site->create_key;
is(in_turn(revoke_call($old_id), rotate_call($old_id), 'COMMIT'), '55000', 'rotated while it is being revoked: refused');
is(successors($old_id), 0, 'and there is no successor');
is(status($old_key), 401, 'nor an old key');

($old_id, $old_key) = $site->create_key;
is(in_turn(rotate_call($old_id), revoke_call($old_id), 'COMMIT'), '00000', 'revoked while it is being rotated');
is(successors($old_id), 1, 'and there is one successor');
is($site->chat($old_key)->{body}, $body{revoked}, 'and the old key is revoked, overlap or not');

($old_id, $old_key) = $site->create_key;
is(in_turn("DELETE FROM regpilot.api_key WHERE id = '$old_id'", rotate_call($old_id), 'COMMIT'),
	'42704', 'rotated while it is being deleted: there is no such key');

# a rotation that takes its time holds up the key's first row of usage, and nothing else
($old_id, $old_key) = $site->create_key;
my ($other_id, $other_key) = $site->create_key;
$first->query_safe('BEGIN');
$first->query_safe(rotate_call($old_id));
is(status($old_key) . status($other_key), '200200', 'a key that is being rotated opens');
is($site->overview($other_id, 'total_requests'), 1, "others' use is added to the totals meanwhile");
$first->query_safe('COMMIT');
is($site->overview($old_id, 'total_requests'), 1, 'and its own when the rotation is over');

# --- flags, while rows are locked

my ($locked_id) = $site->create_key;
my ($stale_id) = $site->create_key;
my $flag = q{SET lock_timeout = '5s'; SELECT regpilot.flag_stale_keys()};
my $flags = 'SELECT count(*) FROM regpilot.api_key WHERE flagged_at IS NOT NULL';
$site->sql("UPDATE regpilot.api_key SET created_at = now() - interval '91 days' WHERE id IN ('$locked_id', '$stale_id')");
$first->query_safe('BEGIN');
$first->query_safe("UPDATE regpilot.api_key SET name = 'locked' WHERE id = '$locked_id'");
is($site->sql($flag), 1, 'flagging leaves out a row that is locked');
$first->query_safe('COMMIT');
is($site->sql($flag), 1, 'until it is no longer');
$site->sql("INSERT INTO regpilot.key_usage SELECT id, 'ci', 1, 0, 0, 0, now() FROM regpilot.api_key WHERE flagged_at IS NOT NULL");
$first->query_safe('BEGIN');
$first->query_safe("UPDATE regpilot.api_key SET name = 'locked' WHERE id = '$locked_id'");
is($site->sql($flag) . $site->sql($flags), '01', 'and so does taking flags off');
$first->query_safe('COMMIT');
is($site->sql($flag) . $site->sql($flags), '00', 'for as long');

# --- as many as will

foreach my $round (1 .. 10)
{
	my ($key_id) = $site->create_key;
	my $states = $site->in_parallel(4, sub { return { sqlstate(rotate_call($key_id)) => 1 } });
	is_deeply($states, { '00000' => 1, '55000' => 3 }, "four rotate at once, $round: one does it");
	is(successors($key_id), 1, "four rotate at once, $round: one successor");
}

# --- import

my @digests;

sub import_call
{
	my ($project) = @_;
	return "SELECT regpilot.import_key('$site->{projects}{enterprise}', 'imported', '\\x$digests[-1]')";
}

sub imported
{
	return $site->sql("SELECT count(*) FROM regpilot.api_key WHERE digest = '\\x$digests[-1]'");
}

push @digests, sha256_hex('legacy 1');
is(in_turn(import_call(), import_call(), 'COMMIT'), '23505', 'imported while it is being imported: refused');
is(imported(), 1, 'and there is one key');
is(status('legacy 1'), 200, 'which opens');

push @digests, sha256_hex('legacy 2');
is(in_turn(import_call(), import_call(), 'ROLLBACK'), '00000', 'unless the first import is rolled back');
is(imported(), 1, 'and there is one key then, too');

push @digests, sha256_hex('legacy 3');
$first->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$first->query_safe('SELECT count(*) FROM regpilot.api_key');
is(sqlstate(import_call()), '00000', 'imported');
like($first->query(import_call() . ";\n\\echo state :SQLSTATE"), qr/^state 40001$/m, 'REPEATABLE READ: cannot be serialized');
$first->{stderr} = '';
$first->query_safe('ROLLBACK');

foreach my $round (1 .. 10)
{
	push @digests, sha256_hex("legacy round $round");
	my $states = $site->in_parallel(4, sub { return { sqlstate(import_call()) => 1 } });
	is_deeply($states, { '00000' => 1, '23505' => 3 }, "four import at once, $round: one does it");
}

# each error once more, with the digest as a parameter
my $script = "$site->{dir}/import.sql";
append_to_file($script, "SELECT regpilot.import_key(:project, 'k', :digest, :environment);\n");
foreach my $environment ('prod', 'no such environment')
{
	my $out = '';
	IPC::Run::run(
		[
			'pgbench', '--no-vacuum', '--protocol=extended', '--transactions=1', "--file=$script",
			"--define=project=$site->{projects}{enterprise}", "--define=digest=\\x$digests[0]",
			"--define=environment=$environment", $node->connstr('regpilot')
		], '>&', \$out);
	unlike($out, qr/$digests[0]/, "bound as a parameter, environment '$environment': not in the error");
	like($out, $environment eq 'prod' ? qr/already exists/ : qr/invalid environment/, 'which is the expected one');
}

# in the text of a statement, and of one inside another
my ($result, $out, $err) = $node->psql('regpilot', 'DO $$BEGIN PERFORM (' . import_call() . '); END$$');
like($err, qr/already exists/, 'imported again by PL/pgSQL: refused');
unlike($err, qr/$digests[-1]/, 'and the digest is not in the error');
is(sqlstate("SELECT regpilot.import_key('00000000-0000-0000-0000-000000000000', 'k', '\\x$digests[0]')"), '42704', 'no project');
is(sqlstate("SELECT regpilot.import_key('$site->{projects}{enterprise}', 'k', '\\x${digests[0]}00')"), '22023', 'too long');

# the log tells of all that, but not the digests
my $log = slurp_file($node->logfile);
like($log, qr/ERROR:  23505: a key with this digest already exists/, 'the log has the errors');
like($log, qr/LOG:  00000: process \d+ still waiting for/, 'and the waits');
like($log, qr/ERROR:  55000: .*\n(?:.*\n)*?.*STATEMENT:  SELECT count\(\*\) FROM regpilot.rotate_key/, 'and statements of others');
my @all = (@digests, split /\n/, $site->sql(q{SELECT encode(digest, 'hex') FROM regpilot.api_key}));
cmp_ok(scalar @all, '>', 30, 'of many digests');
is_deeply([ grep { $site->logs_with($_) } @all ], [], 'none is in a log');

$first->quit;
$second->quit;
done_testing();

sub sqlstate
{
	my ($query) = @_;
	my ($result, $out, $err) = $node->psql('regpilot', "\\set VERBOSITY sqlstate\n$query");
	return $err =~ /ERROR:\s+(\w{5})/ ? $1 : '00000';
}
