# The responder as a process: how it starts, ends and survives.

use strict;
use warnings;
use lib 't/lib';
use IPC::Run ();
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $site = RegPilot::Test->new;
my ($key_id, $key) = $site->create_key;
$site->add_upstream('plain', $site->start_upstream);
$site->add_routes(map { [ $_, 'plain', $_ ] } qw(long-stream silent-stream));

# Runs the responder's binary to its end: exit code and what it said.
sub responder
{
	my ($env, @arguments) = @_;
	local %ENV = (%ENV, %$env);
	my $output = '';
	IPC::Run::run([ $site->responder_binary, @arguments ], '<', \undef, '>&', \$output, IPC::Run::timeout(30));
	return ($? >> 8, $output);
}

# Signals the responder while n clients are in the midst of a stream.
sub end_while_streaming
{
	my ($signal, $model, $clients) = @_;
	my $status;
	my $seen = $site->in_parallel(
		$clients + 1,
		sub {
			my ($client) = @_;
			if ($client == $clients)
			{
				sleep 1.5;
				kill $signal, $site->responder_pid;
				return {};
			}
			my $answer = $site->stream($key, model => $model);
			return { ($answer->{body} =~ /\[DONE\]/ ? 'whole' : 'cut') => 1, $answer->{status} => 1 };
		});
	return ($seen, $site->end_responder('CONT'));
}

# running answers end in peace
foreach my $signal (qw(TERM INT))
{
	my ($seen, $status) = end_while_streaming($signal, 'long-stream', 4);
	is_deeply($seen, { whole => 4, 200 => 4 }, "SIG$signal: running streams end whole");
	is($status, 0, "SIG$signal: exit 0");
	my $answer = $site->get('/healthz');
	is($answer->{status}, 503, "SIG$signal: and nobody is there");
	is($answer->{json}{code}, 'GATEWAY_UNAVAILABLE', "SIG$signal: which nginx says in JSON");
	like($answer->{headers}{'retry-after'}, qr/^\d+$/, "SIG$signal: with a time to try again");
	$site->start_responder;
	$site->wait_for_verdicts;
	is($site->chat($key)->{status}, 200, "SIG$signal: started again, answers");
}
is($site->overview($key_id, 'total_requests, failed_requests'), '10|0', 'no outcome was lost');

# idle, but with connections that the web server keeps
$site->in_parallel(16, sub { $site->stream($key, stream => JSON::PP::false) for 1 .. 10; return {} });
my $start = time;
is($site->end_responder('TERM'), 0, 'idle: exit 0');
cmp_ok(time - $start, '<', 10, 'idle: does not wait for the grace to end');

# answers that do not end have their limit
$site->{env}{REGPILOT_SHUTDOWN_GRACE} = 1000;
$site->start_responder;
$site->wait_for_verdicts;
$start = time;
my ($seen, $status) = end_while_streaming('TERM', 'silent-stream', 2);
is_deeply($seen, { cut => 2, 200 => 2 }, 'past the grace: streams are cut');
is($status, 0, 'past the grace: exit 0');
cmp_ok(time - $start, '<', 15, 'past the grace: the end comes');
delete $site->{env}{REGPILOT_SHUTDOWN_GRACE};

# one socket, one responder
$site->start_responder;
$site->wait_for_verdicts;
my ($code, $output) = responder($site->responder_env);
isnt($code, 0, 'a second responder on a live socket gives up');
like($output, qr/\Q@{[ $site->responder_socket ]}\E/, 'and names the socket');
is($site->chat($key)->{status}, 200, 'the first one still answers');
is((stat $site->responder_socket)[2] & oct(777), oct(660), 'the socket is for owner and group');

# killed, it leaves a stale socket, which does not stop the next one
$site->end_responder('KILL');
ok(-S $site->responder_socket, 'killed: the socket file is still there');
$site->start_responder;
$site->wait_for_verdicts;
is($site->chat($key)->{status}, 200, 'and the next responder takes its place');

# settings
foreach my $bad (
	[ REGPILOT_LISTEN => '0.0.0.0:9000', '192.0.2.1:9000', '[::]:9000', 'unix:', 'unix:' . 'x' x 200, '127.0.0.1', '127.0.0.1:99999', 'nonsense' ],
	[ REGPILOT_MAX_CONNECTIONS => '0', '-1', 'many', '1e3', '99999999999999999999' ],
	[ REGPILOT_THREADS => '-1', 'many', '1001' ],
	[ REGPILOT_MAX_BODY => '0', 'x', '-5' ],
	[ REGPILOT_DATABASE_TIMEOUT => '0', 'soon' ],
	[ REGPILOT_CONNECT_TIMEOUT => '0', '1s' ],
	[ REGPILOT_UPSTREAM_TIMEOUT => 'x' ],
	[ REGPILOT_SHUTDOWN_GRACE => 'x' ],
	[ REGPILOT_CA_FILE => '/nonexistent/ca.pem' ],
	[ REGPILOT_SECRETS_DIR => '/nonexistent' ],
	[ REGPILOT_DATABASE => 'host=localhost nonsense=1' ])
{
	my ($name, @values) = @$bad;
	foreach my $value (@values)
	{
		my $listen = "unix:$site->{dir}/other.sock";
		my ($code, $output) = responder({ REGPILOT_LISTEN => $listen, $name => $value });
		is($code, 2, "$name=" . substr($value, 0, 30) . ': exit 2');
		like($output, qr/$name/, "$name: is named");
		is(($output =~ tr/\n//), 1, "$name: in one line");
	}
}
foreach my $option (qw(--help --version))
{
	my ($code, $output) = responder({}, $option);
	is($code, 0, "$option: exit 0");
	like($output, qr/regpilot-fcgi/, "$option: says what it is");
}
($code, $output) = responder({}, '--nonsense');
is($code, 2, 'an unknown option: exit 2');

# listening on TCP
my $port = PostgreSQL::Test::Cluster::get_free_port();
foreach my $address ("127.0.0.1:$port", "[::1]:$port")
{
	next if $address =~ /::/ && !-e '/proc/net/if_inet6';
	my $log = "$site->{dir}/tcp.log";
	my $pid = $site->spawn($log, { %{ $site->responder_env }, REGPILOT_LISTEN => $address }, $site->responder_binary);
	wait_until("$address", sub { -e $log && slurp_file($log) =~ /listening on/ }, 10);
	is(RegPilot::Test::reap($pid, 'TERM', 20), 0, "listens on $address, exit 0");
	unlink $log;
}

# More clients at once than connections: all are answered. Connections that nginx
# keeps hold a thread each, so they must be fewer.
$site = RegPilot::Test->new(env => { REGPILOT_MAX_CONNECTIONS => 8 }, keepalive => 4);
($key_id, $key) = $site->create_key;
$seen = $site->in_parallel(
	24,
	sub {
		my %count;
		$count{ $site->stream($key)->{status} }++ for 1 .. 5;
		return \%count;
	});
is_deeply($seen, { 200 => 120 }, '24 clients are served over 8 connections');

done_testing();
