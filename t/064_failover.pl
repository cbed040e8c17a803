# Upstreams that fail: how long they are waited for, who is asked instead, and for
# how long they are passed over.

use strict;
use warnings;
use lib 't/lib';
use IO::Socket::INET;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(time);

my $site = RegPilot::Test->new(
	env => {
		TEST_SECRET => 'secret',
		REGPILOT_CONNECT_TIMEOUT => 30_000,
		REGPILOT_UPSTREAM_TIMEOUT => 1000,
	});
my ($key_id, $key) = $site->create_key;
my $upstream = $site->start_upstream;
my $whole = JSON::PP::false;

# Listens, but takes up no connection: the queue is full.
my $deaf = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) // die "listen: $!";
my @waiting = map {
	IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $deaf->sockport, Blocking => 0)
} 1 .. 4;

# --- time limits of an upstream's own

$site->add_upstream('default', $upstream);
$site->add_upstream('patient', $upstream);
$site->add_upstream('impatient', $upstream);
$site->add_upstream('deaf', 'http://127.0.0.1:' . $deaf->sockport . '/v1');
$site->sql(q{UPDATE regpilot.upstream SET timeout_ms = 30000 WHERE name = 'patient'});
$site->sql(q{UPDATE regpilot.upstream SET timeout_ms = 100 WHERE name = 'impatient'});
$site->sql(q{UPDATE regpilot.upstream SET connect_timeout_ms = 200, timeout_ms = 30000 WHERE name = 'deaf'});
$site->add_routes([ 'default-slow', 'default', 'slow' ], [ 'patient-slow', 'patient', 'slow' ],
	[ 'impatient-hang', 'impatient', 'hang' ], [ 'deaf-ok', 'deaf', 'ok' ]);

my %seconds;
foreach my $case ([ 'default-slow', 504 ], [ 'patient-slow', 200 ], [ 'impatient-hang', 504 ], [ 'deaf-ok', 504 ])
{
	my ($model, $status) = @$case;
	my $start = time;
	is($site->chat($key, model => $model, stream => $whole)->{status}, $status, "time limits: $model");
	$seconds{$model} = time - $start;
}
cmp_ok($seconds{'impatient-hang'}, '<', $seconds{'default-slow'}, "a shorter time limit than the responder's");
cmp_ok($seconds{'deaf-ok'}, '<', 20, 'a shorter one to connect');

done_testing();
