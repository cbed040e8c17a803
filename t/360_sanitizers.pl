# All that the responder does, at once, under ASan and UBSan and again under TSan: calls and
# streams of several clients, some of which go away, while the database restarts, routes change
# and a new process takes over; and then the end.

use strict;
use warnings;
use lib 't/lib';
use HTTP::Tiny;
use PostgreSQL::Test::Utils;
use RegPilot::FastCGI;
use RegPilot::Sanitizer;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = 8;
my $clients = 12;
my $json = JSON::PP->new->utf8;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

# Calls of all kinds; each returns the status.
sub calls
{
	my ($site, $key, $limited) = @_;
	my $http = HTTP::Tiny->new(timeout => 60, keep_alive => 0);
	my $ask = sub {
		my ($method, $path, $body, $credential) = @_;
		my %option = (headers => { 'X-API-Key' => $credential // $key, 'Content-Type' => 'application/json' });
		$option{content} = $json->encode($body) if $body;
		return $http->request($method, $site->url . $path, \%option)->{status};
	};
	my $chat = sub { $ask->(POST => '/v1/chat/completions', user_message(@_)) };

	# goes away after the first piece of the answer, past the web server, which might not at once
	my $leave = sub {
		my $body = $json->encode(user_message(@_));
		my $connection = RegPilot::FastCGI->new($site);
		$connection->send(
			request(1, { REQUEST_METHOD => 'POST', REQUEST_URI => '/api/ai/chat', CONTENT_TYPE => 'application/json', HTTP_X_API_KEY => $key }, $body));
		my $piece = $connection->receive;
		return $piece->{content} =~ /^Status: (\d+)/ ? $1 : 0;
	};
	return (
		sub { $ask->(GET => '/api/auth/verify') },
		sub { $ask->(GET => '/api/auth/verify', undef, 'nobody') },
		sub { $ask->(GET => '/auth', undef, $limited) },
		(map { my $path = $_; sub { $ask->(GET => $path) } } qw(/v1/models /metrics /readyz /nowhere)),
		sub { $ask->(POST => '/api/ai/chat', user_message()) },
		sub { $ask->(POST => '/v1/embeddings', { input => [ 'a', 'b' ] }) },
		sub { $ask->(POST => '/v1/chat/completions', { messages => [] }) },
		sub { $chat->(model => 'over') },
		sub { $chat->(model => 'ok', stream => $true) },
		sub { $chat->(model => 'dies', stream => $true) },
		sub { $chat->(model => 'large-event', stream => $true) },
		sub { $chat->(model => 'error-500') },
		sub { $leave->(model => 'long-stream') },
		sub { $leave->(model => 'ok') });
}

# What is done to the responder meanwhile; returns the process that serves afterwards.
sub disturb
{
	my ($site) = @_;
	my $node = $site->node;
	my @server = ('--pgdata', $node->data_dir, '--log', $node->logfile);

	sleep $seconds / 8;
	system_or_bail('pg_ctl', '--silent', @server, '--mode', 'immediate', 'stop');
	sleep $seconds / 8;
	system_or_bail('pg_ctl', '--silent', @server, 'start');
	foreach my $priority (3 .. 12)
	{
		$site->sql("UPDATE regpilot.route SET priority = $priority WHERE alias = 'over' AND upstream = 'plain'");
	}
	sleep $seconds / 8;
	my $log = $site->{responder_log};
	my $from = -s $log;
	kill 'HUP', $site->responder_pid;
	return wait_until('a new process', sub { slurp_file($log, $from) =~ /process (\d+) has taken over/ && $1 });
}

foreach my $kind ('address,undefined', 'thread')
{
	my $sanitizer = RegPilot::Sanitizer->new($kind);
	if (!$sanitizer->is_usable)
	{
		diag("$kind: cannot run on this kernel");
		next;
	}
	my $site = RegPilot::Test->new($sanitizer->options(env => { REGPILOT_PING_INTERVAL => 100 }));
	my $first = $site->responder_pid;
	my ($key_id, $key) = $site->create_key;
	my ($limited_id, $limited) = $site->create_key(plan => 'free');
	$site->add_upstream('plain', $site->start_upstream);
	$site->add_upstream('gone', 'http://127.0.0.1:9/v1');
	$site->add_routes([ 'over', 'gone', 'ok', 1 ], [ 'over', 'plain', 'ok', 2 ], map { [ $_, 'plain', $_ ] } qw(ok long-stream dies large-event error-500));

	my $end = time + $seconds;
	my $serves = "$site->{dir}/serves";
	my $seen = $site->in_parallel(
		$clients + 1,
		sub {
			my ($client) = @_;
			my %count;
			if ($client == $clients)
			{
				append_to_file($serves, disturb($site));
				return {};
			}
			my @calls = calls($site, $key, $limited);
			for (my $i = $client; time < $end; $i++)
			{
				$count{ $calls[ $i % @calls ]->() }++;
			}
			return \%count;
		});
	my $statuses = join ' ', map { "$_: $seen->{$_}" } sort keys %$seen;
	cmp_ok(delete $seen->{200}, '>', 50, "$kind: calls are answered ($statuses)");
	ok(delete $seen->{503}, "$kind: some while the database was away");
	delete @$seen{qw(204 400 401 403 404 502)};
	is_deeply($seen, {}, "$kind: and none in another way");

	is(RegPilot::Test::reap($first, 0, 40), 0, "$kind: the former process ends in peace");
	$site->{responder} = slurp_file($serves);
	$seen = $site->in_parallel(
		5,
		sub {
			my ($client) = @_;
			return { ($site->stream($key, model => 'long-stream')->{body} =~ /\[DONE\]/ ? 'whole' : 'cut') => 1 } if $client > 0;
			sleep 1.5;
			kill 'TERM', $site->responder_pid;
			return {};
		});
	is_deeply($seen, { whole => 4 }, "$kind: told to end, it ends its streams first");
	$site->end_responder(0);
	$sanitizer->finish;
}

done_testing();
