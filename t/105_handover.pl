# Restarts that nobody notices: a new process on the same socket, and no answer lost.

use strict;
use warnings;
use lib 't/lib';
use File::Copy ();
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Socket qw(SOCK_DGRAM);
use Test::More;
use Time::HiRes qw(sleep time);

# A binary that can be replaced, and a service manager that listens.
my $manager;
my $site = RegPilot::Test->new(
	env => sub {
		my ($site) = @_;
		my $built = $site->responder_binary;
		$site->{binary} = "$site->{dir}/regpilot-fcgi";
		File::Copy::copy($built, $site->{binary}) && chmod 0755, $site->{binary} or die "copy: $!";
		$manager = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => "$site->{dir}/notify") or die "notify: $!";
		return { NOTIFY_SOCKET => "$site->{dir}/notify", REGPILOT_LOG_REQUESTS => 'off' };
	});
my ($key_id, $key) = $site->create_key;
$site->add_upstream('plain', $site->start_upstream);
$site->add_routes(map { [ $_, 'plain', $_ ] } qw(ok long-stream));

# Puts a script in the place of the binary, or takes it away again.
sub replace_binary
{
	my ($script) = @_;
	my $binary = $site->responder_binary;
	rename $binary, "$binary.kept" unless -e "$binary.kept";
	return rename "$binary.kept", $binary if !defined $script;
	append_to_file($binary, $script);
	return chmod 0755, $binary;
}

# The next thing that the service manager is told.
sub told
{
	my $message;
	local $SIG{ALRM} = sub { die 'timed out waiting for a notification' };
	alarm 20;
	$manager->recv($message, 1000);
	alarm 0;
	return $message;
}

# What the log says, from a line on, without the lines about requests.
sub messages
{
	my ($from) = @_;
	my @messages = map { $_->{message} } grep { !$_->{event} } RegPilot::Test::json_file($site->{responder_log});
	return @messages[ $from // 0 .. $#messages ];
}

# Sends SIGHUP, and returns the process that has taken over or failed to.
sub hand_over
{
	my ($expected) = @_;
	my $seen = () = messages();
	kill 'HUP', $site->responder_pid;
	return wait_until("a process that $expected", sub { "@{[ messages($seen) ]}" =~ /process (\d+) $expected/ && $1 });
}

is(told(), 'MAINPID=' . $site->responder_pid . "\nREADY=1", 'the service manager hears who serves');

# --- under load

my $restarts = 10;
my $end = "$site->{dir}/end";
my $load = 8;
my $limit = time + 120;
my $seen = $site->in_parallel(
	$load + 1,
	sub {
		my ($client) = @_;
		my %count;
		if ($client == $load)
		{
			foreach (1 .. $restarts)
			{
				my $before = $site->responder_pid;
				$site->{responder} = hand_over('has taken over');
				$count{handovers}++ if $site->responder_pid != $before;
				sleep 0.2;
			}
			append_to_file($end, $site->responder_pid);
			return \%count;
		}
		until (-e $end || time > $limit)
		{
			my $answer =
			    $client % 4 == 0 ? $site->stream($key, model => 'long-stream')
			  : $client % 4 == 1 ? $site->stream($key, model => 'ok', stream => JSON::PP::false)
			  : $site->get('/api/auth/verify', "X-API-Key: $key");
			$count{requests}++;
			$count{"status $answer->{status}"}++ if $answer->{status} != 200;
			$count{cut}++ if $client % 4 == 0 && $answer->{body} !~ /\[DONE\]\n\n\z/;
		}
		return \%count;
	});
my $requests = delete $seen->{requests};
is_deeply($seen, { handovers => $restarts }, 'ten new processes under load: no answer was lost or cut');
cmp_ok($requests, '>', 50, "of $requests");
$site->{responder} = slurp_file($end);
my @told = map { told() } 1 .. $restarts;
is($told[-1], "MAINPID=$site->{responder}\nREADY=1", 'the service manager hears of each');
my $binary = $site->responder_binary;
wait_until('the former processes to end', sub { 1 == grep { (readlink($_) // '') eq $binary } glob '/proc/[0-9]*/exe' });
is($site->overview($key_id, 'total_requests, failed_requests'), "$requests|0", 'and none lost an outcome');

# --- a new process that does not serve

my $serves = $site->responder_pid;
foreach my $script ("#!/bin/sh\nexit 1\n", "#!/bin/sh\nexec sleep 0.1 <&0\n", "\x00")
{
	my $seen = () = messages();
	replace_binary($script);
	kill 'HUP', $serves;
	wait_until('a message', sub { grep { /has not taken over|could not start/ } messages($seen) });
	is($site->get('/api/auth/verify', "X-API-Key: $key")->{status}, 200, 'a program that fails: the old process goes on');
	unlink $binary;
}
replace_binary();
$site->node->stop('fast');
hand_over('has not taken over');
$site->node->start;
$site->wait_for_verdicts;
is($site->get('/api/auth/verify', "X-API-Key: $key")->{status}, 200, 'a database that is away: the old process goes on');
ok(RegPilot::Test::is_running($serves), 'the same one');
isnt($site->{responder} = hand_over('has taken over'), $serves, 'and later hands over after all');
like(told(), qr/^MAINPID=$site->{responder}\n/, 'of which alone the service manager hears');

# --- an inherited socket: another process, started by whoever keeps it, serves beside the first

$end .= '2';
$limit = time + 120;
$site->end_responder('TERM');
is(told(), 'STOPPING=1', 'the service manager hears of the end');
unlink $site->responder_socket;
$site->{inherited} = IO::Socket::UNIX->new(Local => $site->responder_socket, Listen => 100) or die "listen: $!";
$site->{env} = { REGPILOT_LISTEN => '' };
$site->start_responder;
$site->wait_for_verdicts;
$seen = $site->in_parallel(
	$load + 1,
	sub {
		my ($client) = @_;
		my %count;
		if ($client == $load)
		{
			foreach (1 .. 5)
			{
				my $first = $site->responder_pid;
				$site->start_responder;
				RegPilot::Test::reap($first, 'TERM', 20);
				$count{restarts}++;
			}
			append_to_file($end, $site->responder_pid);
			return \%count;
		}
		until (-e $end || time > $limit)
		{
			my $answer = $site->get('/api/auth/verify', "X-API-Key: $key");
			$count{"status $answer->{status}"}++ if $answer->{status} != 200;
		}
		return \%count;
	});
is_deeply($seen, { restarts => 5 }, 'five times another process on an inherited socket: no answer was lost');
$site->{responder} = slurp_file($end);
is($site->get('/api/auth/verify', "X-API-Key: $key")->{status}, 200, 'the last one serves');

done_testing();
