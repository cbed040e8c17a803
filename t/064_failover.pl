# Upstreams that fail: how long they are waited for, who is asked instead, and for
# how long they are passed over.

use strict;
use warnings;
use lib 't/lib';
use IO::Socket::INET;
use IPC::Run ();
use PostgreSQL::Test::Utils qw(slurp_file);
use RegPilot::Clock;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(time);

my $site = RegPilot::Test->new(
	env => { REGPILOT_CONNECT_TIMEOUT => 30_000, REGPILOT_UPSTREAM_TIMEOUT => 1000 });
my ($key_id, $key) = $site->create_key;
my $upstream = $site->start_upstream;
my $whole = JSON::PP::false;

# Calls an alias; gives "status upstream/model".
sub call
{
	my ($alias, %member) = @_;
	my $answer = $site->chat($key, model => $alias, stream => $whole, %member);
	return join ' ', $answer->{status}, grep { defined } $answer->{headers}{'x-regpilot-model'};
}

# What /metrics says of the upstreams that are passed over: name => [ failures, seconds ]
sub failing
{
	my %failing;
	foreach (split /\n/, $site->get('/metrics')->{body})
	{
		$failing{$2}[ $1 eq 'failures' ? 0 : 1 ] = $3
		  if /^regpilot_upstream_(failures|backoff_seconds)\{upstream="([^"]+)"\} (\S+)$/;
	}
	return \%failing;
}

# --- time limits of an upstream's own

# Listens, but takes up no connection: the queue is full.
my $deaf = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) // die "listen: $!";
my @waiting = map {
	IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $deaf->sockport, Blocking => 0)
} 1 .. 4;

$site->add_upstream($_, $upstream) foreach qw(default patient impatient);
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

# --- whatever goes wrong, the next one answers

my @faults = qw(error-500 error-429 secret-401 garbage not-an-object cut redirect rst head-only short-length bad-chunk gzip
  not-http endless-line endless-head endless-1xx endless-body hang);
$site->add_upstream('second', $upstream);
$site->add_upstream("fails-$_", $upstream) foreach @faults, 'endless-event';
$site->add_upstream('fails-refused', 'http://127.0.0.1:1/v1');
push @faults, 'refused';
$site->sql(q{UPDATE regpilot.upstream SET timeout_ms = 300 WHERE name = 'fails-hang'});
$site->add_routes(
	(map { ([ $_, "fails-$_", $_, 1 ], [ $_, 'second', 'at-once', 2 ]) } @faults, 'endless-event'),
	(map { [ "only-$_", "fails-$_", $_ ] } @faults, 'endless-event'),
	[ 'hints', 'second', 'early-hints' ], [ 'old', 'second', 'http-1-0' ]);

is_deeply([ grep { /^fails/ } keys %{ failing() } ], [], 'nothing has failed');
foreach my $fault (@faults)
{
	is(call($fault), '200 second/at-once', "$fault: the next one answers");
	is(failing()->{"fails-$fault"}[0], 1, "$fault: is remembered");
	is(call("only-$fault"), $fault eq 'hang' ? 504 : 502, "$fault: without a next one");
}
foreach my $fault (@faults, 'endless-event')
{
	my $answer = $site->chat($key, model => $fault);
	is($answer->{headers}{'x-regpilot-model'}, 'second/at-once', "$fault, streamed: the next one answers");
	is(text_of($answer), 'one two three four five ', "$fault, streamed: all of it");
	is($site->chat($key, model => "only-$fault")->{status}, $fault eq 'hang' ? 504 : 502,
		"$fault, streamed: without a next one");
}
is(call('hints'), '200 second/early-hints', 'interim answers are passed over');
is(call('old'), '200 second/http-1-0', 'HTTP/1.0 will do');
my ($peak) = slurp_file('/proc/' . $site->responder_pid . '/status') =~ /^VmHWM:\s+(\d+) kB$/m;
SKIP:
{
	skip 'a sanitizer has memory of its own', 1 if $ENV{REGPILOT_TEST_RESPONDER};
	cmp_ok($peak, '<', 200_000, 'and none of it fills the memory');
}

# --- passed over for a while

$site->add_upstream($_, $upstream) foreach qw(first other);
$site->add_routes(
	(map { ([ "first-$_", 'first', $_, 1 ], [ "first-$_", 'second', 'at-once', 2 ]) }
		  qw(at-once refuse hang long-stream dies)),
	[ 'alone', 'first', 'at-once' ],
	[ 'both', 'first', 'at-once', 1 ], [ 'both', 'other', 'at-once', 2 ],
	[ 'refuse-other', 'other', 'refuse' ]);
$site->sql(q{UPDATE regpilot.upstream SET timeout_ms = 60000 WHERE name = 'first'});

my $passed = 0;
# That many more seconds are over.
sub let_pass
{
	$passed += shift;
	return step_monotonic_clock($passed);
}

is(call('first-at-once'), '200 first/at-once', 'the first by priority');
is(call('first-refuse', user => '503 30'), '200 second/at-once', 'fails for half a minute');
is(call('first-at-once'), '200 second/at-once', 'and is passed over') foreach 1 .. 5;
cmp_ok(failing()->{first}[1], '<=', 30, 'for as long as Retry-After says');
cmp_ok(failing()->{first}[1], '>', 1, 'and not less');
$site->add_routes([ 'another', 'second', 'at-once' ]);
is(call('first-at-once'), '200 second/at-once', 'also after the routes have changed');
is(call('alone'), '200 first/at-once', 'where there is no other it is tried all the same');
is(call('first-at-once'), '200 first/at-once', 'and as it has answered, is the first again');

# the times double
foreach my $failures (1 .. 8)
{
	is(call('first-refuse', user => '500 0'), '200 second/at-once', "failure $failures");
	my ($counted, $seconds) = @{ failing()->{first} };
	my $expected = 2**($failures - 1) < 60 ? 2**($failures - 1) : 60;
	is($counted, $failures, "failure $failures: counted");
	cmp_ok($seconds, '<=', $expected, "failure $failures: passed over for at most $expected s");
	cmp_ok($seconds, '>', $expected - 20, "failure $failures: for about that time") if $expected > 20;

	# it is not counted twice for what others try in the meantime
	is($site->chat($key, model => 'alone', stream => $whole, messages => [])->{status}, 400, "failure $failures: in between");
	let_pass($expected + 1);
}
is(call('first-refuse', user => '429 86400'), '200 second/at-once', 'asks for a day');
cmp_ok(failing()->{first}[1], '<=', 60, 'and gets a minute');
let_pass(61);

# one request tries it, while others do not wait for it
my $body = JSON::PP::encode_json(user_message(model => 'first-hang', stream => $whole));
my ($out, $err) = ('', '');
my $probe = IPC::Run::start(
	[ 'curl', '--silent', '--max-time', 60, '--header', "X-API-Key: $key", '--json', $body, $site->url . '/api/ai/chat' ],
	'<', \undef, '>', \$out, '2>', \$err);
wait_until('the upstream to be asked', sub { $site->last_request->{model} eq 'hang' });
is(call('first-at-once'), '200 second/at-once', 'while one request tries it the others pass it over') foreach 1 .. 3;
$probe->kill_kill;
wait_until('its client to be gone', sub { (grep { $_->{event} eq 'client gone' } json_file($site->upstream_requests))[-1]{model} eq 'hang' });
is(wait_until('the next one to try it', sub { my $call = call('first-at-once'); $call =~ /first/ ? $call : undef }),
	'200 first/at-once', 'a client that goes away says nothing of it: the next one tries');
is(failing()->{first}, undef, 'and all is well');

# a stream that has begun lets the others try, too, but is none that has succeeded
call('first-refuse', user => '500 0');
let_pass(2);
$probe = IPC::Run::start(
	[ 'curl', '--silent', '--no-buffer', '--header', "X-API-Key: $key", '--json',
		JSON::PP::encode_json(user_message(model => 'first-long-stream')), $site->url . '/api/ai/chat' ],
	'<', \undef, '>', \$out, '2>', \$err);
wait_until('the stream to begin', sub { $probe->pump_nb; $out =~ /word/ });
is(failing()->{first}[0], 1, 'a stream that has begun: not yet good');
is(call('first-at-once'), '200 first/at-once', 'but others may try');
$probe->kill_kill;
foreach my $failures (1 .. 3)
{
	my $answer = $site->chat($key, model => 'first-dies');
	is($answer->{headers}{'x-regpilot-model'}, 'first/dies', "breaks off, $failures");
	is(failing()->{first}[0], $failures, "breaks off, $failures: is worse each time");
	let_pass(2**$failures);
}
is(call('first-at-once'), '200 first/at-once', 'and good in the end');

# what is the client's fault says nothing
foreach my $status (400, 404, 413, 422)
{
	is(call('first-refuse', user => "$status 30"), "$status first/refuse", "$status is for the client");
	is(failing()->{first}, undef, "$status: and says nothing of the upstream");
}
foreach my $status (401, 403, 408, 429, 500, 502, 503, 529)
{
	is(call('first-refuse', user => "$status 30"), '200 second/at-once', "$status is the upstream's fault");
	is(failing()->{first}[0], 1, "$status: and remembered");
	is(call('alone'), '200 first/at-once', "$status: until it answers");
}

# all fail: in order of priority
call('first-refuse', user => '503 30');
is(call('both'), '200 other/at-once', 'the second, while the first is passed over');
is(call('refuse-other', user => '503 30'), '502', 'that fails as well');
is(call('both'), '200 first/at-once', 'then they are tried in order');

# elsewhere it begins anew
call('first-refuse', user => '503 30');
$site->sql(qq{UPDATE regpilot.upstream SET base_url = '$upstream/' WHERE name = 'first'});
$site->add_routes([ 'yet-another', 'second', 'at-once' ]);
is(call('first-at-once'), '200 first/at-once', 'with another address nothing is held against it');

# --- equal priorities share the load

my @equal = map { "equal-$_" } 1 .. 3;
$site->add_upstream($_, $upstream) foreach @equal;
$site->add_routes((map { [ 'shared', $_, 'at-once', 1 ] } @equal), [ 'shared', 'second', 'at-once', 2 ]);
my %calls;
$calls{ call('shared') }++ foreach 1 .. 60;
is(join(',', sort keys %calls), join(',', map { "200 $_/at-once" } @equal), 'equal priorities: each is asked, and no other');
cmp_ok($calls{$_}, '>', 4, "equal priorities: $_ often enough") foreach sort keys %calls;

done_testing();
