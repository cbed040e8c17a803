# The database goes away and comes back: 503 meanwhile, soon and never 401, and
# the responder does not need a restart. Under load, see t/107.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $site = RegPilot::Test->new;
my $node = $site->node;
my ($key_id, $key) = $site->create_key;
my ($revoked_id, $revoked) = $site->create_key;
$site->sql("SELECT regpilot.revoke_key('$revoked_id')");
my $responder = $site->responder_pid;

sub unavailable
{
	my ($what) = @_;
	foreach my $credential ($key, $revoked, 'nobody')
	{
		my $start = time;
		my $answer = $site->chat($credential);
		my $seconds = time - $start;
		is($answer->{status}, 503, "$what: 503");
		is($answer->{json}{code}, 'DATABASE_UNAVAILABLE', "$what: code");
		like($answer->{headers}{'retry-after'}, qr/^[1-9][0-9]*$/, "$what: Retry-After");
		cmp_ok($seconds, '<', 2, "$what: within 2 s");
	}
	is($site->get('/healthz')->{status}, 200, "$what: healthz asks no database");
	is($site->get('/api/auth/verify')->{body}, $body{missing}, "$what: no key is still no key");
	return;
}

sub answers_again
{
	my ($what) = @_;
	my $start = time;
	my $answer = wait_until('an answer',
		sub { my $answer = $site->chat($key); $answer->{status} != 503 && $answer });
	is($answer->{status}, 200, "$what: answers again");
	cmp_ok(time - $start, '<', 2, "$what: within 2 s");
	is($site->chat($revoked)->{body}, $body{revoked}, "$what: and judges again");
	return;
}

foreach my $mode (qw(fast immediate))
{
	$node->stop($mode);
	unavailable("stopped ($mode)");
	# long enough for a reconnect's waits to have grown
	sleep 5;
	unavailable("still stopped ($mode)");
	$node->start;
	answers_again("started ($mode)");
}

# the server does not stop but hangs
my @backends = split /\n/, $site->sql(q{SELECT pid FROM pg_stat_activity WHERE usename = 'regpilot_gateway'});
cmp_ok(scalar @backends, '<=', 2, 'the responder holds at most two connections');
my $postmaster = (split /\n/, PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid'))[0];
kill 'STOP', $postmaster, @backends;
unavailable('hanging');
kill 'CONT', $postmaster, @backends;
answers_again('hanging no more');

# its connections are cut
$site->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'regpilot_gateway'});
answers_again('connections cut');

# an admin holds a lock on the key table
my $psql = $node->background_psql('regpilot', on_error_stop => 1);
$psql->query_safe('BEGIN; LOCK TABLE regpilot.api_key');
unavailable('table locked');
$psql->query_safe('COMMIT');
answers_again('table unlocked');
$psql->quit;

is($site->responder_pid, $responder, 'the responder was never started anew');
is(waitpid($responder, POSIX::WNOHANG()), 0, 'and is the process that it was');

done_testing();
