# Counts are exact: what was authorised reads back as just that many.

use strict;
use warnings;
use lib 't/lib';
use HTTP::Tiny;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;

my @keys = map { ($site->create_key(environment => (qw(dev staging prod ci))[ $_ % 4 ]))[1] } 1 .. 100;

sub total
{
	$site->sql('SELECT regpilot.flush_usage()');
	return $site->sql(
		'SELECT sum(total_requests), sum(failed_requests), min(total_requests), max(total_requests) FROM regpilot.key_overview');
}

# 8 clients x 2,000 calls, each client its own way through the keys
my $statuses = $site->in_parallel(
	8,
	sub {
		my ($client) = @_;
		my $http = HTTP::Tiny->new;
		my %count;
		foreach my $call (1 .. 2000)
		{
			my $key = $keys[ ($call * 7 + $client * 13) % 100 ];
			$count{ $http->get($site->url . '/api/auth/verify', { headers => { 'X-API-Key' => $key } })->{status} }++;
		}
		return \%count;
	});
is_deeply($statuses, { 200 => 16000 }, '8 clients made 2,000 calls each');
is(total(), '16000|0|160|160', 'key_overview adds up to exactly 16,000');

# while the worker and flush_usage() flush all the time, and some calls fail
$statuses = $site->in_parallel(
	5,
	sub {
		my ($client) = @_;
		my %count;
		if ($client == 4)
		{
			$site->sql('SELECT regpilot.flush_usage() FROM generate_series(1, 100)') for 1 .. 5;
			return {};
		}
		my $http = HTTP::Tiny->new;
		foreach my $call (1 .. 500)
		{
			my $request = { headers => { 'X-API-Key' => $keys[ $call % 100 ] } };
			# every tenth asks a chat without messages
			my $answer =
			  $call % 10
			  ? $http->get($site->url . '/api/auth/verify', $request)
			  : $http->post($site->url . '/api/ai/chat',
				{ content => '{}', headers => { %{ $request->{headers} }, 'Content-Type' => 'application/json' } });
			$count{ $answer->{status} }++;
		}
		return \%count;
	});
is_deeply($statuses, { 200 => 1800, 400 => 200 }, 'four clients more, one call in ten a failing one');
wait_until('the outcomes to be recorded', sub { (split /\|/, total())[1] >= 200 }, 10);
is(total(), '18000|200|180|180', 'totals and failures are exact');
is($site->sql(q{SELECT sum(total_requests) FROM regpilot.key_usage WHERE environment IN ('dev', 'staging', 'prod', 'ci')}),
	18000, 'all of it under the environments of the keys');

# a clean restart of the server and the responder loses nothing
$site->end_responder('TERM');
$site->node->restart;
$site->wait_for_worker;
$site->start_responder;
$site->wait_for_verdicts;
is(total(), '18000|200|180|180', 'the same after a restart');

done_testing();
