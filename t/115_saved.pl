# What shared memory holds over a restart of the server, clean or not: rate
# windows go on, and no count is lost or doubled. And a flush waits for nobody.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $site = RegPilot::Test->new(responder => 0, conf => "max_prepared_transactions = 2\n");
my $node = $site->node;
my $file = $node->data_dir . '/pg_stat/regpilot.stat';

# Authorises that many requests; returns how many passed.
sub authorize
{
	my ($key, $count) = @_;
	return $site->sql(
		qq{SELECT count(*) FROM (SELECT (regpilot.authorize('$key')).verdict FROM generate_series(1, $count)) a WHERE verdict = 'ok'});
}

# A new key with a limit of 100 in a minute, of which 60 are taken.
sub busy_key
{
	my ($id, $key) = $site->create_key(requests_per_minute => 100);
	is(authorize($key, 60), 60, '60 of 100 places are taken');
	return ($id, $key);
}

sub is_still_busy
{
	my ($key, $what) = @_;
	is(authorize($key, 50), 40, "$what: the window goes on");
	ok(!-e $file, "$what: the file is gone");
}

# the worker tells when it has started, since a crash ends the sessions that ask
sub wait_for_restart
{
	my ($code) = @_;
	my $log = -s $node->logfile;
	$code->();
	wait_until('a restart', sub { slurp_file($node->logfile, $log) =~ /database system is ready to accept/ });
	$site->wait_for_worker;
}

my ($id, $key) = busy_key();
$node->restart;
$site->wait_for_worker;
is_still_busy($key, 'clean restart');
is($site->overview($id, 'total_requests'), 100, 'clean restart: exact total');

($id, $key) = busy_key();
$node->stop('immediate');
$node->start;
$site->wait_for_worker;
is_still_busy($key, 'immediate stop');
is($site->overview($id, 'total_requests'), 100, 'immediate stop: exact total');

foreach my $victim ('client backend', 'regpilot worker')
{
	(undef, $key) = busy_key();
	my $session = $node->background_psql('regpilot');
	$session->query_safe('SELECT 1');
	my $pid = $site->sql(
		qq{SELECT min(pid) FROM pg_stat_activity WHERE backend_type = '$victim' AND pid <> pg_backend_pid()});
	wait_for_restart(sub { kill 'KILL', $pid });
	is_still_busy($key, "$victim killed");
	eval { $session->quit };
}

($id, $key) = busy_key();
kill_whole_server($node);
ok(-e $file, 'postmaster killed: the worker has saved');
$node->start;
$site->wait_for_worker;
is_still_busy($key, 'postmaster killed');
is($site->overview($id, 'total_requests'), 100, 'postmaster killed: exact total');

# a file that is damaged, truncated or another program's is not believed, and gone
foreach my $damage (
	[ 'a flipped bit', sub { substr($_[0], length($_[0]) / 2, 1) ^= "\1" } ],
	[ 'a truncated file', sub { substr($_[0], -1) = '' } ],
	[ 'an empty file', sub { $_[0] = '' } ],
	[ 'junk', sub { $_[0] = join '', map { chr rand 256 } 1 .. 5000 } ])
{
	my ($what, $code) = @$damage;
	(undef, $key) = busy_key();
	$node->stop;
	my $content = slurp_file($file);
	$code->($content);
	open my $handle, '>:raw', $file or die "$file: $!";
	print $handle $content;
	close $handle;
	my $log = -s $node->logfile;
	$node->start;
	$site->wait_for_worker;
	like(slurp_file($node->logfile, $log), qr/ignoring invalid data in file "pg_stat\/regpilot\.stat"/, "$what: is told");
	is(authorize($key, 100), 100, "$what: the window is empty");
	ok(!-e $file, "$what: the file is gone");
}

# where it cannot be written the server stops all the same, and starts empty
(undef, $key) = busy_key();
mkdir "$file.tmp" or die "$file.tmp: $!";
$node->restart;
$site->wait_for_worker;
is(authorize($key, 100), 100, 'unwritable file: the window is empty');
rmdir "$file.tmp";

# --- keys and rows that somebody else holds are flushed later, all others now

my ($held, $held_key) = $site->create_key;
my ($free, $free_key) = $site->create_key;
my ($fresh, $fresh_key) = $site->create_key;
authorize($_, 1) foreach $held_key, $free_key;
is($site->overview($held, 'total_requests'), 1, 'both keys have a row');

my $holder = $node->background_psql('regpilot');
$holder->query_safe("BEGIN; DELETE FROM regpilot.api_key WHERE id IN ('$held', '$fresh')");
authorize($_, 2) foreach $held_key, $free_key, $fresh_key;
is($site->overview($free, 'total_requests'), 3, 'a row that is being deleted does not delay the others');
is($site->sql("SELECT total_requests FROM regpilot.key_usage WHERE key_id = '$held'"), 1, 'its own counts wait');
is($site->sql('SELECT sum(n) FROM regpilot.usage_journal, unnest(total_requests) n'), 4, 'in the journal');
$holder->query_safe('ROLLBACK');
is($site->overview($held, 'total_requests'), 3, 'and are there after the ROLLBACK');
is($site->overview($fresh, 'total_requests'), 2, 'also those of a key without a row');
$holder->quit;

# over a clean stop, if need be
$site->sql("BEGIN; DELETE FROM regpilot.api_key WHERE id IN ('$held', '$fresh'); PREPARE TRANSACTION 'held'");
authorize($_, 4) foreach $held_key, $free_key;
$node->restart;
$site->wait_for_worker;
is($site->overview($free, 'total_requests'), 7, 'a prepared transaction does not delay the others');
is($site->sql("SELECT total_requests FROM regpilot.key_usage WHERE key_id = '$held'"), 3, 'its own counts wait');
$site->sql("ROLLBACK PREPARED 'held'");
is($site->overview($held, 'total_requests'), 7, 'and are there after a restart');

# once the key is gone they are too
$site->sql("BEGIN; DELETE FROM regpilot.api_key WHERE id = '$held'; PREPARE TRANSACTION 'held'");
is(authorize($held_key, 1), 1, 'authorised until the COMMIT');
$site->sql('SELECT regpilot.flush_usage()');
$site->sql("COMMIT PREPARED 'held'");
$site->sql('SELECT regpilot.flush_usage()');
is($site->sql('SELECT count(*) FROM regpilot.usage_journal'), 0, 'counts of a deleted key are dropped');

done_testing();
