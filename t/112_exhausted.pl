# What a responder has too little of: room for its log, descriptors, connections, memory. It serves on,
# with what there is, and recovers.

use strict;
use warnings;
use lib 't/lib';
use Fcntl;
use HTTP::Tiny;
use IPC::Run ();
use POSIX ();
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $site = RegPilot::Test->new(keepalive => 2);
my ($key_id, $key) = $site->create_key;
my @upstreams = map { "up$_" } 1 .. 5;
$site->add_upstream($_, $site->start_upstream) foreach @upstreams;
$site->add_routes((map { [ "$_-ok", $_, 'at-once' ] } @upstreams),
	map { [ $_, 'up1', $_ ] } qw(at-once ok silent-stream));
my %header = ('X-API-Key' => $key);
my $whole = JSON::PP::false;

sub verify { return (shift // HTTP::Tiny->new)->get($site->url . '/api/auth/verify', { headers => \%header })->{status} }

sub metric
{
	my ($name) = @_;
	my ($value) = $site->get('/metrics')->{body} =~ /^\Q$name\E (\S+)$/m;
	return $value;
}

# Starts the responder anew: with these settings, another place for its log, by a program.
sub restart
{
	my ($env, $log, @command) = @_;
	is($site->end_responder('TERM'), 0, 'the responder ends') if $site->responder_pid;
	$site->{env} = { REGPILOT_SHUTDOWN_GRACE => 1000, %$env };
	$site->{responder} = $site->spawn($log // $site->{responder_log}, $site->responder_env, @command, $site->responder_binary);
	wait_until('the responder', sub { $site->get('/healthz')->{status} == 200 }, 20);
	$site->wait_for_verdicts;
	return;
}

# Streams that go on until they are ended.
sub start_streams
{
	my ($count, $model) = @_;
	my @streams = map {
		my $out = '';
		my $process = IPC::Run::start(
			[ 'curl', '--silent', '--no-buffer', '--header', "X-API-Key: $key",
				'--json', JSON::PP::encode_json(user_message(model => $model)), $site->url . '/api/ai/chat' ],
			'<', \undef, '>', \$out);
		{ process => $process, out => \$out }
	} 1 .. $count;
	foreach my $stream (@streams)
	{
		wait_until('a stream to begin', sub { $stream->{process}->pump_nb; ${ $stream->{out} } =~ /data:/ });
	}
	return @streams;
}
sub end_streams { $_->{process}->kill_kill foreach @_; return }

# Seconds of CPU time that the responder has used.
sub cpu_time
{
	my @stat = split ' ', slurp_file('/proc/' . $site->responder_pid . '/stat') =~ s/^.*\) //sr;
	return ($stat[11] + $stat[12]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

sub set_limit
{
	my ($limit) = @_;
	return system_or_bail('prlimit', '--pid', $site->responder_pid, $limit);
}

# n clients that ask once each, while code runs: what they got
sub meanwhile
{
	my ($clients, $code) = @_;
	return $site->in_parallel(
		$clients + 1,
		sub {
			return { verify() => 1 } if $_[0] < $clients;
			$code->();
			return {};
		});
}

# --- no room for the log

# never read, and made full
my $pipe = "$site->{dir}/pipe";
POSIX::mkfifo($pipe, oct(600)) or die "$pipe: $!";
sysopen my $reader, $pipe, O_RDWR or die "$pipe: $!";

foreach my $case ([ '/dev/full', 'a full disk' ], [ $pipe, 'a pipe that nobody reads' ])
{
	my ($log, $what) = @$case;
	restart({}, $log);
	my $seen = $site->in_parallel(
		4,
		sub {
			my $http = HTTP::Tiny->new;
			my %count;
			do { $count{ verify($http) }++ foreach 1 .. 200 } until $count{200} >= 20_000 || metric('regpilot_log_lines_lost_total') > 0;
			return \%count;
		});
	is(join(',', keys %$seen), 200, "$what: all is served ($seen->{200})");
	my $lost = metric('regpilot_log_lines_lost_total');
	cmp_ok($lost, '>', 0, "$what: lines are lost");
	is(text_of($site->chat($key, model => 'at-once')), 'one two three four five ', "$what: a stream");
	wait_until('more', sub { metric('regpilot_log_lines_lost_total') > $lost });
	pass("$what: more lines are lost");

	# those that log something when they are cut off have to wait for no one
	my @streams = start_streams(3, 'silent-stream');
	my $start = time;
	is($site->end_responder('TERM'), 0, "$what: it ends");
	cmp_ok(time - $start, '<', 15, "$what: as soon as it should");
	end_streams(@streams);
}

# It starts all the same. A thread that goes on after all time is up has something to log while the end of the log is
# waited for.
restart({ REGPILOT_DATABASE_TIMEOUT => 2500, REGPILOT_SHUTDOWN_GRACE => 0 }, $pipe);
my $session = $site->node->background_psql('regpilot', on_error_stop => 1);
$session->query_safe('BEGIN; LOCK TABLE regpilot.api_key');
my $client = IPC::Run::start([ 'curl', '--silent', '--header', "X-API-Key: $key", $site->url . '/api/auth/verify' ],
	'<', \undef, '>', \my $out);
$site->node->poll_query_until('regpilot', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'});
my $start = time;
is($site->end_responder('TERM'), 0, 'a late line for a pipe that nobody reads: it ends');
cmp_ok(time - $start, '<', 15, 'a late line for a pipe that nobody reads: as soon as it should');
$client->finish;
$session->query_safe('COMMIT');
$session->quit;
close $reader;
restart({});
is(metric('regpilot_log_lines_lost_total'), 0, 'with room again no line is lost');
my %shown;
$shown{$_}++ foreach $site->get('/metrics')->{body} =~ /^# TYPE (\S+)/mg;
is_deeply([ grep { $shown{$_} > 1 } sort keys %shown ], [], 'no metric is shown twice');

# --- not enough descriptors: a limit that is known from the start

restart({ REGPILOT_MAX_SESSIONS => 0 }, undef, 'prlimit', '--nofile=92');
my $seen = $site->in_parallel(
	24,
	sub {
		my ($client) = @_;
		my %count;
		foreach my $n (1 .. 4)
		{
			# an upstream each time, of which a connection may be kept
			my $model = $upstreams[ ($client + $n) % @upstreams ] . '-ok';
			$count{ $site->stream($key, model => $model, stream => $n % 2 ? $whole : JSON::PP::true)->{status} }++;
			$count{ verify() }++;
		}
		return \%count;
	});
is_deeply($seen, { 200 => 192 }, '92 descriptors: 24 clients are served');
is($site->get('/metrics')->{body} =~ /^regpilot_upstream_failures/m, '', 'and no upstream is blamed');

# all connections are in a stream: others wait, and not in a hurry
my $connections = metric('regpilot_connections_max');
cmp_ok($connections, '<', 12, "92 descriptors: $connections connections");
my @streams = start_streams($connections, 'silent-stream');
my $cpu = cpu_time();
$seen = meanwhile(6, sub { sleep 2; end_streams(@streams) });
is_deeply($seen, { 200 => 6 }, 'all connections in a stream: others are served when these end');
cmp_ok(cpu_time() - $cpu, '<', 1, 'and the responder has been idle meanwhile');
end_streams(@streams);

# a limit that becomes lower, as if others of the process had them
restart({});
my $descriptors = () = glob '/proc/' . $site->responder_pid . '/fd/*';
$cpu = cpu_time();
set_limit('--nofile=' . $descriptors . ':');
$seen = meanwhile(6, sub { sleep 2; set_limit('--nofile=100:') });
is_deeply($seen, { 200 => 6 }, 'no descriptors: clients are served when there are some again');
cmp_ok(cpu_time() - $cpu, '<', 1, 'and the responder has been idle meanwhile');
is(verify(), 200, 'and all is well');

# --- not enough connections

restart({ REGPILOT_MAX_CONNECTIONS => 8 });
foreach my $round (1 .. 2)
{
	@streams = start_streams(8, 'ok');
	$seen = $site->in_parallel(12, sub { return { verify() => 1 } });
	is_deeply($seen, { 200 => 12 }, "8 connections in a stream, round $round: others are served in the end");
	$_->{process}->finish foreach @streams;
	is(scalar(grep { ${ $_->{out} } =~ /\[DONE\]/ } @streams), 8, "8 connections in a stream, round $round: which are whole");
}

# --- no memory for another one

restart({});
my ($pages) = slurp_file('/proc/' . $site->responder_pid . '/statm') =~ /^(\d+)/;
set_limit('--as=' . (4096 * $pages + 3 * 1024 * 1024) . ':'); # a connection's stack is 1 MB
$seen = $site->in_parallel(24, sub { return { verify() => 1 } });
is_deeply($seen, { 200 => 24 }, 'no memory for another stack: clients are served by the tasks that there are');
like(slurp_file($site->{responder_log}), qr/could not make room for a connection/, 'as the log says');
set_limit('--as=unlimited:');
is(verify(), 200, 'and all is well');

# --- a limit of streams

restart({ REGPILOT_MAX_STREAMS => 3 });
foreach my $round (1 .. 2)
{
	@streams = start_streams(3, 'silent-stream');
	foreach my $streamed (JSON::PP::true, $whole)
	{
		my $answer = $site->chat($key, model => 'at-once', stream => $streamed);
		is($answer->{status}, 503, "too many streams, round $round: 503");
		is($answer->{json}{code}, 'TOO_MANY_STREAMS', "too many streams, round $round: code");
		like($answer->{headers}{'retry-after'}, qr/^[1-9]\d*$/, "too many streams, round $round: Retry-After");
	}
	is(verify(), 200, "too many streams, round $round: keys are checked");
	end_streams(@streams);
	my $answer = wait_until('a place', sub { my $answer = $site->chat($key, model => 'at-once'); $answer->{status} == 200 && $answer });
	is(text_of($answer), 'one two three four five ', "too many streams, round $round: and streams go on when others have ended");
}
is($site->end_responder('TERM'), 0, 'the responder ends');

done_testing();
