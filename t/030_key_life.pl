# What an admin does to a key in psql shows in the very next request.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;

sub chat_is
{
	my ($key, $status, $body, $what) = @_;
	my $answer = $site->chat($key);
	is($answer->{status}, $status, $what);
	is($answer->{body}, $body, "$what: body") if $body;
	return;
}

# revoked for good
my ($key_id, $key) = $site->create_key;
chat_is($key, 200, undef, 'a new key');
$site->sql("SELECT regpilot.revoke_key('$key_id', 'left in a repository')");
chat_is($key, 401, $body{revoked}, 'revoked');
isnt($site->node->psql('regpilot', "SELECT regpilot.enable_key('$key_id')"), 0, 'revoked, it cannot be enabled');
chat_is($key, 401, $body{revoked}, 'revoked for good');

# the first request after the COMMIT, every time
foreach (1 .. 20)
{
	($key_id, $key) = $site->create_key;
	my $before = $site->get('/api/auth/verify', "X-API-Key: $key")->{status};
	$site->sql("SELECT regpilot.revoke_key('$key_id')");
	is("$before " . $site->get('/api/auth/verify', "X-API-Key: $key")->{status}, '200 401', "revoked at once, $_");
}

# disabled and enabled
($key_id, $key) = $site->create_key;
$site->sql("SELECT regpilot.disable_key('$key_id')");
chat_is($key, 401, $body{invalid}, 'disabled');
$site->sql("SELECT regpilot.enable_key('$key_id')");
chat_is($key, 200, undef, 'enabled again');
is($site->overview($key_id, 'status, total_requests'), 'active|1', 'the refused call took nothing');

# expired
($key_id, $key) = $site->create_key(expires_at => '2099-01-01');
chat_is($key, 200, undef, 'not expired yet');
$site->sql("UPDATE regpilot.api_key SET expires_at = now() - interval '1 second' WHERE id = '$key_id'");
chat_is($key, 401, $body{invalid}, 'expired');

# permissions
($key_id, $key) = $site->create_key(permissions => [ 'gateway:read', 'logs:read', 'analytics:read' ]);
chat_is($key, 403, $body{forbidden}, 'without gateway:write');
is($site->get('/api/auth/verify', "X-API-Key: $key")->{status}, 200, 'which any valid key may ask about itself');

# a key deleted, and a key of a deleted project
($key_id, $key) = $site->create_key;
$site->sql("DELETE FROM regpilot.api_key WHERE id = '$key_id'");
chat_is($key, 401, $body{invalid}, 'deleted');

# a change of plan
($key_id, $key) = $site->create_key(plan => 'growth');
is($site->get('/api/auth/verify', "X-API-Key: $key")->{headers}{'x-ratelimit-limit'}, 500, 'the limit of the plan');
$site->sql("UPDATE regpilot.project SET plan = 'startup' WHERE plan = 'growth'");
is($site->get('/api/auth/verify', "X-API-Key: $key")->{headers}{'x-ratelimit-limit'}, 100, 'and of the next one');

# what is no key at all is refused like any other, and leaves no trace
my %no_key = (
	'31 characters' => 'sk_prod_abcdefghijklmnopqrstuvw',
	'10 kB' => join('', map { chr(33 + int rand 94) } 1 .. 10_000),
	'the prefix alone' => 'sk_',
	'one byte' => 'x',
	'bytes above 127' => "\x{c3}\x{28}\x{ff}\x{fe}" x 8,
	'quotes' => q{'; DROP TABLE regpilot.api_key; --},
	'a digest' => $site->sql(q{SELECT encode(digest, 'hex') FROM regpilot.api_key LIMIT 1}),
	'a redacted one' => '<redacted>',
);
# What the logs of responder and nginx say, but for the lines that each request has.
sub messages
{
	return map { grep { !/"event":"request"/ } split /\n/, slurp_file($_) }
	  grep { $_ ne $site->node->logfile } $site->logs;
}
my @before = messages();
foreach my $what (sort keys %no_key)
{
	chat_is($no_key{$what}, 401, $body{invalid}, $what);
}
cmp_ok(scalar @before, '>=', 1, 'there are logs');
is_deeply([ messages() ], \@before, 'and nothing more in them');
foreach my $what ('31 characters', '10 kB', 'bytes above 127', 'quotes')
{
	is_deeply([ $site->logs_with(substr $no_key{$what}, 0, 31) ], [], "$what: in no log");
}
chat_is($key, 200, undef, 'and a good key still opens');

done_testing();
