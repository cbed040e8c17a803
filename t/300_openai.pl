# OpenAI's own package for Node.js, unmodified, with no more than a key and a base
# URL: t/clients/openai.mjs.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Client;
use RegPilot::Clock;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(env => { REGPILOT_UPSTREAM_TIMEOUT => 8000, REGPILOT_PING_INTERVAL => 100 });
my $upstream = $site->start_upstream;
$site->sql(q{DELETE FROM regpilot.route WHERE alias = '*'});
$site->add_upstream('good', $upstream);

# One that fails is not to be passed over where it is not meant to fail.
my @failing = qw(dies no-done error-500 stuck);
$site->add_upstream($_, $upstream) foreach @failing;
$site->add_routes(
	[ 'chat', 'good', 'ok' ],
	[ 'echo', 'builtin', 'echo' ],
	(map { [ $_, 'good', $_ ] } qw(at-once tools embed long-stream silent-stream hang error-400)),
	[ 'vendor/embed 1', 'good', 'embed' ],
	map { [ $_, $_, $_ ] } @failing);

my (%id, %key);
sub key { my ($name, @options) = @_; ($id{$name}, $key{$name}) = $site->create_key(@options); return }
key('whole');
key('reads', permissions => ['gateway:read']);
key('writes', permissions => ['gateway:write']);
key('revoked');
$site->sql("SELECT regpilot.revoke_key('$id{revoked}')");
key('expired');
$site->sql("UPDATE regpilot.api_key SET expires_at = now() - interval '1 second' WHERE id = '$id{expired}'");
key('limited', requests_per_minute => 1);
key('retried', requests_per_minute => 1);
key('streamed');

my $config = { url => $site->url, key => \%key, requests => $site->upstream_requests };
my @openai = ('node', 't/clients/openai.mjs');

run_client($site, $config, @openai, 'surface');

# --- what a stream used is recorded, though its client did not ask

my $answer = $site->post('/v1/chat/completions', user_message(model => 'chat', stream => JSON::PP::true),
	"Authorization: Bearer $key{streamed}");
is($answer->{status}, 200, 'a stream whose client does not ask for usage');
like($answer->{body}, qr/^: ping\n\n/m, 'the streams here have pings, which clients pass over');
my $used = '';
eval
{
	wait_until('the tokens',
		sub { ($used = $site->overview($id{streamed}, q{(SELECT string_agg(prompt_tokens || ' ' || completion_tokens, ';')
			FROM regpilot.key_usage u WHERE u.key_id = key_overview.key_id)})) eq '7 5' }, 10);
};
is($used, '7 5', 'its tokens are recorded');

# --- a call that comes too soon, and again by itself

my $client = start_client($site, $config, @openai, 'retry');
wait_until('the one place of a minute to be taken', sub { grep { $_->{taken} } client_said($client) });
step_monotonic_clock(56);
finish_client($client);

# --- a database that comes back

$site->node->stop('immediate');
$client = start_client($site, $config, @openai, 'outage');
wait_until('the client to be refused twice', sub { 2 <= grep { $_->{status} } client_said($client) });
$site->node->start;
finish_client($client);

done_testing();
